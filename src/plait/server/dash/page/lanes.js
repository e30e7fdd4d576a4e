// Bars on lanes over time, on a canvas: what instances did, or the ranks of a training step.
import { Component, createRef } from "./vendor/preact.js";
import { clock, colour, html, ms } from "./format.js";

const ROW = 20, LABEL = 116, AXIS = 18;
const NAMES = { mixed: "both in one step", score: "scoring", move: "KV moves" };

// props: id, beginUs, endUs, rows [{label, bars: [[beginUs, us, kind, figure]], thin: [...]}], kinds
export class Lanes extends Component {
  constructor() {
    super();
    this.root = createRef();
  }

  componentDidMount() {
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.root.current);
    this.theme = matchMedia("(prefers-color-scheme: dark)");
    this.redraw = () => this.draw();
    this.theme.addEventListener("change", this.redraw);
    this.draw();
  }

  componentWillUnmount() {
    this.resized.disconnect();
    this.theme.removeEventListener("change", this.redraw);
  }

  componentDidUpdate() {
    this.draw();
  }

  draw() {
    const canvas = this.root.current.querySelector("canvas");
    const { rows, beginUs, endUs } = this.props;
    const width = this.root.current.clientWidth, height = rows.length * ROW + AXIS, ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = height + "px";
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui";
    const scale = (width - LABEL - 4) / Math.max(1, endUs - beginUs);
    this.x = (us) => LABEL + (Math.max(us, beginUs) - beginUs) * scale;
    this.axis(pen, width, height);
    rows.forEach((row, number) => this.row(pen, row, number * ROW));
  }

  axis(pen, width, height) {
    const { beginUs, endUs } = this.props;
    const step = niceStep((endUs - beginUs) / 8);
    pen.textBaseline = "alphabetic";
    for (let us = Math.ceil(beginUs / step) * step; us <= endUs; us += step) {
      pen.fillStyle = colour("line");
      pen.fillRect(this.x(us), 0, 1, height - AXIS + 4);
      pen.fillStyle = colour("dim");
      if (this.x(us) + 40 < width) pen.fillText(clock(us / 1e6), this.x(us) + 3, height - 4);
    }
  }

  row(pen, row, top) {
    pen.textBaseline = "middle";
    pen.fillStyle = colour("text");
    pen.fillText(row.label, 0, top + ROW / 2);
    for (const [begin, long, kind, figure] of row.bars) {
      const left = this.x(begin), wide = Math.max(1, this.x(begin + long) - left);
      pen.fillStyle = colour(kind);
      pen.fillRect(left, top + 2, wide - (wide > 3 ? 0.5 : 0), row.thin ? ROW - 9 : ROW - 4);
      // The width of a group says more than its colour.
      if (figure > 1 && wide > 14 && kind !== "move") {
        pen.fillStyle = colour("ink");
        pen.fillText("×" + figure, left + 3, top + (row.thin ? 7.5 : ROW / 2));
      }
    }
    for (const [begin, long, kind] of row.thin || []) {
      pen.fillStyle = colour(kind);
      pen.fillRect(this.x(begin), top + ROW - 6, Math.max(1, this.x(begin + long) - this.x(begin)), 4);
    }
  }

  // What lies under the pointer.
  find(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const row = this.props.rows[Math.floor((event.clientY - box.top) / ROW)];
    const x = event.clientX - box.left;
    const hit = row && [...row.bars, ...(row.thin || [])].find(([begin, long]) => this.x(begin) <= x && x <= this.x(begin + long) + 1);
    const said = hit ? `${row.label}: ${NAMES[hit[2]] || hit[2]}, ${ms(hit[1] / 1e3)}${size(hit)}, from ${clock(hit[0] / 1e6)}` : "";
    event.currentTarget.title = said;
  }

  render({ id, rows, kinds }) {
    const bars = rows.reduce((sum, row) => sum + row.bars.length + (row.thin || []).length, 0);
    return html`<div class="lanes" id=${id} ref=${this.root} data-rows=${rows.length} data-bars=${bars}>
      <div class="key">${kinds.map((kind) => html`<span><i class=${"is-" + kind}></i>${NAMES[kind] || kind}</span>`)}</div>
      <canvas role="img" aria-label="what was done when" onMouseMove=${(event) => this.find(event)}></canvas>
    </div>`;
  }
}

function size([, , kind, figure]) {
  if (kind === "move") return figure > 1 ? `, ${figure} moves` : "";
  return figure > 1 ? ` on ${figure} instances` : "";
}

function niceStep(us) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, us)));
  return [1, 2, 5, 10].map((times) => times * power).find((step) => step >= us);
}
