// Who is there, in which role, with whom, and how full.
import { clock, count, html, percent } from "./format.js";

export function Instances({ picture }) {
  return html`<section class="panel" id="instances">
    <h2>Instances</h2>
    <table>
      <thead><tr><th>id</th><th>role</th><th>now</th><th>group</th><th class="n">prefill</th><th class="n">decode</th><th class="n">other</th><th>KV</th></tr></thead>
      <tbody>${picture.instances.map((each) => html`<${Row} key=${each.id} each=${each} />`)}</tbody>
    </table>
    <${Groups} picture=${picture} />
  </section>`;
}

function Row({ each }) {
  const share = each.kv_slots ? each.kv_used / each.kv_slots : 0;
  const down = each.state !== "up";
  return html`<tr class=${down ? "down" : ""} data-instance=${each.id}>
    <td>${each.id}</td>
    <td><span class=${"role is-" + each.role}>${each.role}</span></td>
    <td>${down ? "down" : each.work ? html`<i class=${"is-" + each.work}></i>${each.work}` : html`<span class="dim">idle</span>`}</td>
    <td>${each.group.length > 1 ? each.group.join(" ") : html`<span class="dim">alone</span>`}</td>
    <td class="n">${each.prefilling || ""}</td><td class="n">${each.decoding || ""}</td><td class="n">${each.holding || ""}</td>
    <td class="kv" title=${`${each.kv_used} of ${each.kv_slots} slots`}><span class="meter"><span style=${{ width: 100 * share + "%" }}></span></span>${percent(share)}</td>
  </tr>`;
}

// Elastic groups as they are at this moment.
function Groups({ picture }) {
  if (!picture.instances.some((each) => each.role.startsWith("elastic"))) return null;
  return html`<h3>Groups now</h3>
    <ul class="groups" id="groups">${picture.groups.map(
      (group) => html`<li>
        <span class=${"chip is-" + group.work}>×${group.members.length}</span>${" " + group.members.join(" ") + " "}
        <small>${group.work}, ${count(group.rows)} rows, since ${clock(group.since_us / 1e6)}${group.why && ": " + group.why}</small>
      </li>`,
    )}${picture.groups.length === 0 && html`<li class="dim">each instance computes alone</li>`}</ul>`;
}
