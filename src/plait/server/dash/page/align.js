// A run of `plait align`: rewards, divergence, losses, where the time went, and what the ranks did.
import { Chart } from "./charts.js";
import { html, whole } from "./format.js";
import { Lanes } from "./lanes.js";

const GROUPS = [
  ["Reward", ["score", "reward"], false],
  ["KL to the reference, nats", ["kl", "kl_coefficient"], true],
  ["Losses", ["actor/loss", "critic/loss"], false],
  ["Entropy, nats", ["actor/entropy"], false],
  ["Clipped share, explained variance", ["actor/clip_fraction", "critic/explained_variance"], false],
  ["Generator against trainer, nats", ["rollout_gap"], true],
];
const COLOURS = ["decode", "prefill"];
const STAGES = { generation: "decode", reading: "score", training: "prefill", weights: "move" };

const short = (value) => Number(value.toPrecision(3)).toString();

export function Align({ run }) {
  const charts = GROUPS.filter(([, keys]) => keys.some((key) => run.curves[key]));
  return html`<section class="panel" id="align">
    <h2>Alignment <small>${run.iterations.length ? `iteration ${run.iterations[run.iterations.length - 1]}` : "no iteration yet"}</small></h2>
    <div class="charts">
      ${charts.map(([title, keys, fromZero]) => html`<${Chart} key=${title} title=${title} x=${run.iterations} lines=${lines(run, keys)} format=${short} xFormat=${whole} sync="iteration" fromZero=${fromZero} />`)}
      <${Chart} title="Seconds of an iteration, by stage" x=${run.iterations} lines=${stages(run.seconds)} format=${short} xFormat=${whole} sync="iteration" />
    </div>
    ${run.ranks.length > 0 && html`<h3>Ranks in the last training step</h3><${Lanes} id="ranks" beginUs=${0} endUs=${end(run.ranks)} rows=${rows(run.ranks)} kinds=${kinds(run.ranks)} />`}
  </section>`;
}

function lines(run, keys) {
  return keys.filter((key) => run.curves[key]).map((key, at) => ({ label: key, values: run.curves[key], colour: COLOURS[at] }));
}

function stages(seconds) {
  return Object.entries(seconds).map(([stage, values]) => ({ label: stage, values, colour: STAGES[stage] }));
}

function rows(ranks) {
  return ranks.map(({ rank, bars }) => ({ label: "rank " + rank, bars: bars.map(([begin, long, model, kind]) => [begin, long, name(model, kind), 1]) }));
}

function kinds(ranks) {
  return [...new Set(ranks.flatMap(({ bars }) => bars.map(([, , model, kind]) => name(model, kind))))].sort();
}

// As dash.css names its colour.
function name(model, kind) {
  return `${model}-${kind.toLowerCase()}`;
}

function end(ranks) {
  return Math.max(1, ...ranks.flatMap(({ bars }) => bars.map(([begin, long]) => begin + long)));
}
