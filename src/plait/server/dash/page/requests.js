// The newest requests: how long each one waited for what.
import { clock, count, html, ms } from "./format.js";

const PHASES = ["queue", "prefill", "wait", "move", "decode"];

export function Requests({ picture }) {
  const rows = [...picture.requests].reverse();
  const begin = Math.min(...rows.map((row) => row.phases[0][0]), picture.now_us);
  const end = Math.max(...rows.map((row) => row.end_us ?? picture.now_us), begin + 1);
  return html`<section class="panel" id="requests">
    <h2>Newest requests <small>${clock(begin / 1e6)} to ${clock(end / 1e6)}</small></h2>
    <div class="key">${PHASES.map((phase) => html`<span><i class=${"is-" + phase}></i>${phase === "wait" ? "waits for room elsewhere" : phase}</span>`)}</div>
    <div class="scroll"><table class="waterfall">
      <thead><tr><th class="n">id</th><th class="n">in</th><th class="n">out</th><th class="n">TTFT</th><th class="n">TPOT</th><th>end</th><th></th></tr></thead>
      <tbody>${rows.map((row) => html`<${Row} key=${row.id} row=${row} begin=${begin} end=${end} picture=${picture} />`)}</tbody>
    </table></div>
  </section>`;
}

function Row({ row, begin, end, picture }) {
  const over = row.end_us ?? picture.now_us;
  const percent = (us) => (100 * us) / (end - begin) + "%";
  const bars = row.phases.map(([from, phase], at) => {
    const to = at + 1 < row.phases.length ? row.phases[at + 1][0] : over;
    const style = { left: percent(from - begin), width: percent(Math.max(0, to - from)) };
    return html`<span class=${"is-" + phase} style=${style} title=${`${phase} ${ms((to - from) / 1e3)}`}></span>`;
  });
  const ttft = row.first_us == null ? null : (row.first_us - row.phases[0][0]) / 1e3;
  const tpot = row.end_us != null && row.tokens > 1 && row.first_us != null ? (row.end_us - row.first_us) / 1e3 / (row.tokens - 1) : null;
  const late = (value, limit) => "n" + (limit != null && value > limit ? " late" : "");
  return html`<tr data-request=${row.id}>
    <td class="n">${row.id}</td><td class="n">${count(row.prompt_tokens)}</td><td class="n">${count(row.tokens)}</td>
    <td class=${late(ttft, picture.ttft_slo_ms)}>${ms(ttft)}</td><td class=${late(tpot, picture.tpot_slo_ms)}>${ms(tpot)}</td><td>${row.outcome || "…"}</td>
    <td class="track"><div>${bars}</div></td>
  </tr>`;
}
