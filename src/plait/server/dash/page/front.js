// What a compression search measured: score over the bits that a policy keeps.
import { Chart } from "./charts.js";
import { clock, count, html } from "./format.js";

const short = (value) => Number(value.toPrecision(3)).toString();

export function Front({ trials }) {
  const order = trials.kept_bits.map((_, at) => at).sort((a, b) => trials.kept_bits[a] - trials.kept_bits[b]);
  const best = new Set(trials.best);
  const pick = (keep) => order.map((at) => (keep(at) ? trials.score[at] : null));
  const lines = [
    { label: "measured", values: pick((at) => !best.has(at)), colour: "dim", points: 5 },
    { label: "front", values: pick((at) => best.has(at)), colour: "decode", points: 8 },
  ];
  if (trials.chosen != null) lines.push({ label: "chosen", values: pick((at) => at === trials.chosen), colour: "prefill", points: 12 });
  return html`<section class="panel" id="front">
    <h2>Compression <small>${count(trials.labels)} policies measured in ${clock(trials.seconds)}</small></h2>
    <${Chart} title="Score over kept bits of a weight (mean over units)" x=${order.map((at) => trials.kept_bits[at])} lines=${lines} format=${short} xFormat=${short} fromZero=${false} height=${260} />
  </section>`;
}
