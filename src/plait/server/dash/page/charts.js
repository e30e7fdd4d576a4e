// Curves over a common x, drawn by uPlot, which is a global of its own script.
import { Component, createRef } from "./vendor/preact.js";
import { clock, colour, html } from "./format.js";

const HEIGHT = 132;

// props: title, x, lines [{label, values, colour, dash, fill, points}], format(value), xFormat, sync, fromZero, height
export class Chart extends Component {
  constructor() {
    super();
    this.root = createRef();
  }

  componentDidMount() {
    this.make();
    this.resized = new ResizeObserver(() => this.plot && this.plot.setSize(this.size()));
    this.resized.observe(this.root.current);
    this.theme = matchMedia("(prefers-color-scheme: dark)");
    this.remake = () => this.make();
    this.theme.addEventListener("change", this.remake);
  }

  componentWillUnmount() {
    this.resized.disconnect();
    this.theme.removeEventListener("change", this.remake);
    this.plot.destroy();
  }

  componentDidUpdate() {
    if (this.signature() !== this.made) this.make();
    else this.plot.setData(this.data());
  }

  signature() {
    return this.props.lines.map((line) => line.label).join("|");
  }

  size() {
    return { width: Math.max(160, this.root.current.clientWidth), height: this.props.height || HEIGHT };
  }

  data() {
    return [this.props.x, ...this.props.lines.map((line) => line.values)];
  }

  make() {
    if (this.plot) this.plot.destroy();
    this.made = this.signature();
    this.plot = new uPlot(this.options(), this.data(), this.root.current.querySelector(".plot"));
  }

  options() {
    const { lines, format, xFormat = clock, sync, fromZero = true } = this.props;
    const axis = { stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    return {
      ...this.size(),
      padding: [6, 8, 0, 0],
      cursor: { y: false, ...(sync ? { sync: { key: sync } } : {}) },
      legend: { live: true },
      scales: { x: { time: false, range: (_, low, high) => edges(low, high, lines) }, y: { range: (_, low, high) => span(low, high, fromZero) } },
      axes: [
        { ...axis, size: 26, gap: 6, space: 64, values: (_, ticks) => ticks.map(xFormat) },
        { ...axis, size: 54, gap: 3, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : format(tick))) },
      ],
      series: [
        { label: "at", value: (_, value) => (value == null ? "–" : xFormat(value)) },
        ...lines.map((line) => ({
          label: line.label,
          stroke: colour(line.colour),
          width: line.points ? 0 : 1.5,
          dash: line.dash ? [4, 4] : undefined,
          fill: line.fill ? colour(line.colour) + "28" : undefined,
          paths: line.points ? () => null : undefined,
          points: line.points ? { show: true, size: line.points, fill: colour(line.colour) } : { show: false },
          spanGaps: true,
          value: (_, value) => (value == null ? "–" : format(value)),
        })),
      ],
    };
  }

  render({ title, id }) {
    return html`<figure class="chart" id=${id} ref=${this.root}><figcaption>${title}</figcaption><div class="plot"></div></figure>`;
  }
}

// Points must not lie on the frame.
function edges(low, high, lines) {
  const pad = lines.some((line) => line.points) ? 0.02 * (high - low) || 0.5 : high > low ? 0 : 0.5;
  return low == null ? [0, 1] : [low - pad, high + pad];
}

function span(low, high, fromZero) {
  if (low == null || high == null) return [0, 1];
  if (fromZero) return [Math.min(0, low), high > 0 ? 1.08 * high : 1];
  const edge = 0.08 * (high - low) || Math.abs(high) * 0.1 || 1;
  return [low - edge, high + edge];
}

// A line at the same height everywhere: an objective.
export function level(label, value, x, name) {
  return { label, values: x.map(() => value), colour: name, dash: true };
}
