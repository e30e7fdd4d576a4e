// The figures that are looked at first.
import { count, html, ms, percent, rate } from "./format.js";

export function Tiles({ picture }) {
  const { totals, latency, instances, curves } = picture;
  const used = sum(instances.map((each) => each.kv_used)), slots = sum(instances.map((each) => each.kv_slots));
  const slo = picture.ttft_slo_ms != null;
  const failed = Object.entries(totals.outcomes).filter(([how]) => how !== "stop" && how !== "length");
  return html`<section class="tiles" id="tiles">
    <${Tile} name="waiting" value=${count(totals.waiting)} more="requests in the queue" />
    <${Tile} name="running" value=${count(totals.running)} more=${count(totals.completed) + " completed"} />
    <${Tile} name="tokens/s" value=${rate(recent(curves, curves.tokens))} more=${count(totals.tokens) + " drawn"} />
    <${Tile} name="TTFT p50" value=${ms(latency.ttft_p50_ms)} more=${"p99 " + ms(latency.ttft_p99_ms)} bad=${slo && latency.ttft_p50_ms > picture.ttft_slo_ms} />
    <${Tile} name="TPOT p50" value=${ms(latency.tpot_p50_ms)} more=${"p99 " + ms(latency.tpot_p99_ms)} bad=${slo && latency.tpot_p50_ms > picture.tpot_slo_ms} />
    ${slo && html`<${Tile} name="goodput" value=${rate(totals.goodput) + " /s"} more=${percent(totals.attainment) + " met both objectives"} bad=${totals.attainment != null && totals.attainment < 0.9} />`}
    <${Tile} name="KV in use" value=${percent(slots ? used / slots : null)} more=${count(used) + " of " + count(slots) + " slots"} />
    <${Tile} name="moves" value=${count(totals.moves)} more=${count(totals.moved_tokens) + " tokens" + (totals.move_failures ? `, ${totals.move_failures} failed` : "")} />
    <${Tile} name="recomputed" value=${count(totals.restarts)} more=${failed.map(([how, times]) => `${times} ${how}`).join(", ") || "no request failed"} bad=${totals.outcomes.failed > 0} />
  </section>`;
}

function Tile({ name, value, more, bad }) {
  return html`<div class=${"tile" + (bad ? " bad" : "")} data-name=${name}><b>${name}</b><strong>${value}</strong><small>${more}</small></div>`;
}

// A second, over the newest whole intervals of about two seconds.
export function recent(curves, values) {
  const step = curves.step_us / 1e6, want = Math.max(1, Math.ceil(2 / step));
  const part = values.slice(0, -1).slice(-want);
  return part.length ? sum(part) / (part.length * step) : null;
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}
