// Numbers and times as people read them. Owner of every unit that the page shows.
import { h } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);

// 1,234 or 12.3k or 4.56M: four characters where they suffice.
export function count(value) {
  if (value == null) return "–";
  if (Math.abs(value) < 10000) return Math.round(value).toLocaleString("en");
  const [scale, unit] = Math.abs(value) < 1e6 ? [1e3, "k"] : Math.abs(value) < 1e9 ? [1e6, "M"] : [1e9, "G"];
  return (value / scale).toPrecision(3) + unit;
}

export function ms(value) {
  if (value == null) return "–";
  if (value >= 1000) return (value / 1000).toPrecision(3) + " s";
  if (value === 0) return "0 ms";
  return (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toPrecision(2)) + " ms";
}

export function rate(value) {
  if (value == null) return "–";
  return value >= 1000 ? count(value) : value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(2)));
}

// Of counts on an axis: nothing between two of them.
export function whole(value) {
  return Number.isInteger(value) ? String(value) : "";
}

export function percent(share) {
  return share == null ? "–" : (100 * share).toFixed(share > 0.0995 || share === 0 ? 0 : 1) + " %";
}

// Seconds since the start, as short as they may be.
export function clock(seconds) {
  if (seconds < 100) return Number(seconds.toFixed(seconds < 10 ? 2 : 1)) + " s";
  const whole = Math.floor(seconds);
  const two = (part) => String(part).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  return (hours ? hours + ":" : "") + two(Math.floor(whole / 60) % 60) + ":" + two(whole % 60);
}

// A colour by its name in dash.css, for what is drawn on a canvas.
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}
