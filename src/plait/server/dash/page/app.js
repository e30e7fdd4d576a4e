// The page: takes sheets from the stream and lays out what they hold.
import { Component, render } from "./vendor/preact.js";
import { Align } from "./align.js";
import { Chart, level } from "./charts.js";
import { clock, count, html, ms, percent, rate, whole } from "./format.js";
import { Front } from "./front.js";
import { Instances } from "./instances.js";
import { Lanes } from "./lanes.js";
import { Log } from "./log.js";
import { Requests } from "./requests.js";
import { past, setKey, watch } from "./stream.js";
import { Tiles } from "./tiles.js";

class App extends Component {
  constructor() {
    super();
    this.state = { sheet: null, link: "connecting", earlier: null, at: null };
  }

  componentDidMount() {
    this.watch();
  }

  watch() {
    this.setState({ link: "connecting" });
    this.watching = watch(
      (sheet) => this.setState({ sheet }),
      (link) => this.setState({ link }),
    );
  }

  enter(event) {
    event.preventDefault();
    setKey(event.target.elements.key.value);
    this.watch();
  }

  // Answers may overtake each other: only the one for the newest place of the slider is shown.
  async seek(at) {
    this.setState({ at });
    try {
      const sheet = await past(at);
      if (this.state.at === at) this.setState({ earlier: { at, sheet } });
    } catch (error) {
      this.setState({ link: error.message });
    }
  }

  render(_, { sheet, link, earlier, at }) {
    if (link === "key") return html`<${KeyForm} enter=${(event) => this.enter(event)} />`;
    if (!sheet) return html`<p class="hint" id="hint">${link === "live" ? "waiting for the first sheet" : link}</p>`;
    const shown = at != null && earlier ? earlier.sheet : sheet;
    const film = html`<${Film} film=${sheet.film} at=${at} seek=${(us) => this.seek(us)} present=${() => this.setState({ at: null, earlier: null })} />`;
    return html`<${Head} sheet=${sheet} link=${link} picture=${shown.picture} at=${shown === sheet ? null : earlier.at}>${film}<//>
      ${sheet.fault && html`<p class="fault" id="fault">${sheet.fault}</p>`}
      ${shown.picture && html`<${Core} picture=${shown.picture} />`}
      ${sheet.alignment && html`<${Align} run=${sheet.alignment} />`}
      ${sheet.trials && html`<${Front} trials=${sheet.trials} />`}`;
  }
}

function Head({ sheet, link, picture, at, children }) {
  const notes = Object.entries(sheet.notes).map(([name, value]) => `${name}: ${value}`).join("\n");
  return html`<header>
    <h1 title=${notes}>${sheet.title}</h1>
    <span class=${"world is-" + sheet.world} id="world">${sheet.world}</span>
    ${picture && html`<span id="now" data-at=${at}>${clock(picture.now_us / 1e6)}</span>`}
    ${picture && picture.ttft_slo_ms != null && html`<span class="dim" id="slo">objectives: TTFT ${ms(picture.ttft_slo_ms)}, TPOT ${ms(picture.tpot_slo_ms)}</span>`}
    ${children}
    <span class=${"link" + (link === "live" ? "" : " broken")} id="link">${link === "live" ? "connected" : link}</span>
  </header>`;
}

// A recorded run can be looked back in.
function Film({ film, at, seek, present }) {
  if (!film) return null;
  return html`<span class="film">
    <input type="range" id="film" aria-label="moment" min=${film.begin_us} max=${film.end_us} step="any" value=${at ?? film.end_us} onInput=${(event) => seek(Number(event.target.value))} />
    ${at != null && html`<button onClick=${present}>to the end</button>`}
    ${film.read < 1 && html`<small>read ${percent(film.read)}</small>`}
  </span>`;
}

function KeyForm({ enter }) {
  return html`<form class="hint" id="key" onSubmit=${enter}>
    <label>API key <input name="key" type="password" autocomplete="off" required /></label> <button>show</button>
    <p class="dim">This server asks for a key. It is kept in this tab only.</p>
  </form>`;
}

function Core({ picture }) {
  return html`<${Tiles} picture=${picture} />
    ${picture.rollout && html`<${Rollout} rollout=${picture.rollout} picture=${picture} />`}
    <${Curves} picture=${picture} />
    <div class="two"><${Instances} picture=${picture} /><${Work} picture=${picture} /></div>
    <div class="two wide"><${Requests} picture=${picture} /><${Log} lines=${picture.log} /></div>`;
}

function Work({ picture }) {
  const roles = new Map(picture.instances.map((each) => [each.id, each.role]));
  const rows = picture.lanes.map((lane) => ({ label: `${lane.instance} ${roles.get(lane.instance)}`, bars: lane.compute, thin: lane.copy }));
  const all = picture.lanes.flatMap((lane) => [...lane.compute, ...lane.copy]);
  const kinds = ["prefill", "decode", "mixed", "score", "move"].filter((kind) => all.some((bar) => bar[2] === kind));
  return html`<section class="panel"><h2>What each instance does</h2>
    <${Lanes} id="lanes" beginUs=${picture.lanes_begin_us} endUs=${picture.now_us} rows=${rows} kinds=${kinds} />
  </section>`;
}

function Rollout({ rollout, picture }) {
  const seconds = (picture.now_us - rollout.begin_us) / 1e6;
  return html`<section class="panel strip" id="rollout">
    <h2>Iteration ${rollout.iteration}</h2>
    <span>${rollout.finished} of ${rollout.samples} samples drawn</span>
    <span>${rollout.scored} of ${rollout.batches} readings done</span>
    <span>${rollout.tail ? `the last ${rollout.tail} go on together on ${rollout.kept}` : "no tail"}</span>
    <span>${clock(seconds)}</span>
    <span class="dim">${rollout.why}</span>
  </section>`;
}

function Curves({ picture }) {
  const { curves } = picture, step = curves.step_us / 1e6;
  const x = curves.arrived.map((_, at) => curves.begin_us / 1e6 + at * step);
  const aim = (value, lines) => (value == null ? lines : [...lines, level("objective", value, x, "fault")]);
  const one = (id, title, format, ...lines) => html`<${Chart} key=${id} id=${id} title=${title} x=${x} lines=${lines} format=${format} sync="time" />`;
  const elastic = picture.instances.some((each) => each.role.startsWith("elastic"));
  const good = picture.ttft_slo_ms == null ? [] : [line("goodput", perSecond(curves.met, step), "score")];
  return html`<section class="panel" id="curves"><div class=${"charts " + (elastic ? "seven" : "six")}>
    ${one("ttft", "Time to first token", ms, ...aim(picture.ttft_slo_ms, [line("p50", curves.ttft_p50_ms, "decode"), line("p90", curves.ttft_p90_ms, "prefill")]))}
    ${one("tpot", "Time per output token", ms, ...aim(picture.tpot_slo_ms, [line("p50", curves.tpot_p50_ms, "decode"), line("p90", curves.tpot_p90_ms, "prefill")]))}
    ${one("rates", "Requests a second", rate, line("arrived", perSecond(curves.arrived, step), "dim"), line("completed", perSecond(curves.completed, step), "decode"), ...good)}
    ${one("tokens", "Tokens a second", count, { ...line("drawn", perSecond(curves.tokens, step), "decode"), fill: true })}
    ${one("queue", "Requests", count, line("waiting", curves.waiting, "prefill"), line("running", curves.running, "decode"))}
    ${one("kv", "KV in use", (value) => rate(value) + " %", { ...line("KV", curves.kv_share.map((share) => 100 * share), "decode"), fill: true })}
    ${elastic && one("widest", "Instances of the widest step", whole, line("instances", curves.widest.map((wide) => wide || null), "mixed"))}
  </div></section>`;
}

// Means over a second, or over a sixtieth of what is shown where that is longer: single arrivals are no rate.
function perSecond(values, step) {
  const wide = Math.ceil(Math.max(1 / step, values.length / 60));
  let sum = 0;
  return values.map((value, at) => {
    sum += value - (at >= wide ? values[at - wide] : 0);
    return sum / (Math.min(at + 1, wide) * step);
  });
}

function line(label, values, colour) {
  return { label, values, colour };
}

render(html`<${App} />`, document.getElementById("dash"));
