/* Numbers as a reader wants them. */
const UP = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
export const grouped = (number) => Math.round(number).toLocaleString("en-US").replace("-", "−");
export const powerOfTen = (exponent) =>
  exponent >= -2 && exponent <= 2 ? String(10 ** exponent) : `10${[...String(exponent)].map((c) => UP[c]).join("")}`;

export function shown(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) {
    const [factor, exponent] = value.toExponential(Math.max(digits - 2, 0)).split("e");
    return `${factor.replace("-", "−")}·10${[...String(Number(exponent))].map((c) => UP[c]).join("")}`;
  }
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/* The smallest of 1, 2, 5, 10, … that is no smaller. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const base = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * base).find((step) => step >= value * (1 - 1e-9));
}

/* Ticks at round numbers, at least so far apart. */
export const niceStep = (atLeast) => Math.max(1, roundUp(atLeast));

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
export const headName = (layer, head) => `L${layer} H${head}`;
