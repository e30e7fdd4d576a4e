// The core's own words, newest first.
import { Component } from "./vendor/preact.js";
import { clock, html } from "./format.js";

const KINDS = ["worker", "role", "fault", "refusal", "rollout", "why", "move"];

export class Log extends Component {
  constructor() {
    super();
    this.state = { hidden: {} };
  }

  render({ lines }, { hidden }) {
    const turn = (kind) => this.setState({ hidden: { ...hidden, [kind]: !hidden[kind] } });
    const there = KINDS.filter((kind) => lines.some((line) => line.kind === kind));
    const shown = lines.filter((line) => !hidden[line.kind]);
    return html`<section class="panel" id="log">
      <h2>What happened, and why</h2>
      <div class="key">${there.map((kind) => html`<label><input type="checkbox" checked=${!hidden[kind]} onChange=${() => turn(kind)} />${kind}</label>`)}</div>
      <div class="scroll"><ol>${shown.map(
        (line) => html`<li class=${"said-" + line.kind}><time>${clock(line.at_us / 1e6)}</time><b>${line.kind}</b><span>${line.text}${line.times > 1 && html` <small>×${line.times}</small>`}</span></li>`,
      )}</ol></div>
    </section>`;
  }
}
