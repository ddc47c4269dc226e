/* The rulers of a map: positions from afar, tokens as one comes near. */
import { grouped, niceStep } from "./numbers.js";

const READABLE = 11; // pixels of a cell from which every token has room
const TOKENS_FROM = 4; // cells a pixel below which a tick also says its token

/* Draw the ruler of keys along the top, or of queries along the left, for cells [first, last). */
export function drawRuler(context, side, place, { first, last, cell, zoom, size, words, colours, pinned, hovered }) {
  const along = side === "top";
  const each = cell >= READABLE;
  const step = each ? 1 : niceStep(Math.max((along ? 30 : 22) * zoom, 1));
  context.save();
  context.font = "11px ui-monospace, 'SF Mono', Menlo, Consolas, monospace";
  context.textBaseline = "middle";
  const clip = { first: place(first), last: place(last) };
  for (let i = Math.ceil(first / step) * step; i < last; i += step) {
    const at = place(i) + (each ? cell / 2 : 0);
    if (at < clip.first - 20 || at > clip.last + 20) continue;
    const strong = i === pinned || i === hovered;
    context.fillStyle = i === pinned ? colours.pin : strong ? colours.hover : each ? colours.ink : colours.quiet;
    const token = each || zoom < TOKENS_FROM ? words.get(i) : undefined;
    const number = grouped(words.position(i));
    const room = size - 12;
    const text = each ? (cell > 26 && token !== undefined ? token : token ?? number) : token === undefined ? number : `${number} ${token}`;
    label(context, along, at, size, fitted(context, text, room), strong);
    if (!each) tick(context, along, at, size, colours.line);
  }
  context.restore();
}

function label(context, along, at, size, text, strong) {
  context.save();
  if (strong) context.font = `bold ${context.font}`;
  if (along) {
    context.translate(at, size - 7);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(text, 0, 0);
  } else {
    context.textAlign = "right";
    context.fillText(text, size - 7, at);
  }
  context.restore();
}

function tick(context, along, at, size, colour) {
  context.fillStyle = colour;
  if (along) context.fillRect(Math.round(at), size - 4, 1, 4);
  else context.fillRect(size - 4, Math.round(at), 4, 1);
}

/* As much of a text as there is room for. */
function fitted(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let length = text.length;
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > room) length--;
  return `${text.slice(0, length)}…`;
}
