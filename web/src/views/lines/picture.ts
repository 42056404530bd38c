/** The lines of one text as a drawing by itself: what is seen, or all of a short text. */
import { percent } from "../../parts/names";
import { linesAsSvg, type Pen } from "./draw";
import { beyond, type Column, type Line, middle, visible } from "./layout";
import type { Standing } from "./selection";

/** A word of a column. */
interface Word extends Standing {
  label: string;
}

export interface Drawing {
  title: string;
  note: string;
  lines: readonly Line[];
  pen: Pen;
  /** Left and right. */
  columns: readonly [Column, Column];
  words: readonly [(unit: number) => Word, (unit: number) => Word];
  /** Widths of the labels. */
  widths: readonly [number, number];
  colours: { query: string; key: string; ink: string; muted: string; ground: string };
  /** Names of several heads with their colours; of one head none. */
  heads: readonly { name: string; colour: string }[];
  /** Colours of a partner's parts, one for each head. */
  parts: readonly string[];
}

const MARGIN = 16;
const TOP = 58;
const GAP = 8;
/** Space for a partner's bar with its percentage. */
const BAR = 56;
const BAR_ROOM = BAR + 46;
const FONT = "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif";

/** An SVG's inner elements with its size. Several texts stand beside each other in one drawing. */
function draw(drawing: Drawing, id: string): { body: string; width: number; height: number } {
  const { pen, widths, colours } = drawing;
  const barred = drawing.words.map((words, i) =>
    shownOf(drawing.columns[i] as Column, words).some((word) => word.partner),
  );
  const left = MARGIN + (barred[0] ? BAR_ROOM : 0) + widths[0] + GAP;
  const right = left + pen.width + GAP;
  const width = Math.max(right + widths[1] + (barred[1] ? BAR_ROOM : 0) + MARGIN, 380);
  const height = TOP + pen.height + (drawing.heads.length ? 24 : 0) + 26;
  const largest = Math.max(
    1e-9,
    ...drawing.words.flatMap((words, i) =>
      shownOf(drawing.columns[i] as Column, words).map((word) => word.partner?.weight ?? 0),
    ),
  );
  const column = (i: 0 | 1, x: number, anchor: "start" | "end") =>
    shownOf(drawing.columns[i], drawing.words[i]).map((word) =>
      wordAsSvg(word, { x, anchor, drawing, largest, width: widths[i] }),
    );
  const body = [
    text(MARGIN, 22, drawing.title, { size: 14, weight: 600, fill: colours.ink }),
    text(left - GAP, TOP - 12, "queries", { anchor: "end", size: 12, weight: 600, fill: colours.query }),
    text(right, TOP - 12, "keys", { size: 12, weight: 600, fill: colours.key }),
    `<g transform="translate(0 ${TOP})">`,
    linesAsSvg(drawing.lines, pen, left, id),
    ...column(0, left - GAP, "end"),
    ...column(1, right, "start"),
    "</g>",
    ...legend(drawing, TOP + pen.height + 22),
    text(MARGIN, height - 10, drawing.note, { size: 11, fill: colours.muted }),
  ].join("");
  return { body, width: Math.max(width, MARGIN * 2 + drawing.note.length * 5.6), height };
}

/** Drawings beside each other as one file. */
export function svgOf(drawings: readonly Drawing[]): string {
  const drawn = drawings.map((drawing, i) => draw(drawing, `text-${i}`));
  const width = Math.ceil(drawn.reduce((sum, one) => sum + one.width, 0));
  const height = Math.ceil(Math.max(...drawn.map((one) => one.height)));
  let x = 0;
  const bodies = drawn.map((one) => {
    const body = `<g transform="translate(${x} 0)">${one.body}</g>`;
    x += one.width;
    return body;
  });
  const ground = drawings[0]?.colours.ground ?? "white";
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${FONT}"><rect width="100%" height="100%" fill="${ground}"/>${bodies.join("")}</svg>`;
}

function shownOf(column: Column, words: (unit: number) => Word): (Word & { y: number })[] {
  const [first, stop] = visible(column, 0);
  const found: (Word & { y: number })[] = [];
  for (let slot = first; slot < stop; slot++) {
    if (beyond(column, slot) === 0) found.push({ ...words(column.shown[slot] as number), y: middle(column, slot) });
  }
  return found;
}

function wordAsSvg(
  word: Word & { y: number },
  place: { x: number; anchor: "start" | "end"; drawing: Drawing; largest: number; width: number },
): string {
  const { x, anchor, drawing, largest, width } = place;
  const fill = word.faint ? drawing.colours.muted : drawing.colours.ink;
  const label = text(x, word.y + 4.5, word.label, {
    anchor,
    size: 13,
    weight: word.chosen ? 700 : 400,
    fill,
  });
  if (!word.partner) return label;
  const way = anchor === "end" ? -1 : 1;
  const start = x + way * (width + GAP);
  let at = start;
  const { heads } = word.partner;
  const bars = heads.map((weight, head) => {
    const length = (BAR * weight) / heads.length / largest;
    const bar = `<rect x="${n(way < 0 ? at - length : at)}" y="${n(word.y - 4)}" width="${n(length)}" height="8" fill="${drawing.parts[head]}"/>`;
    at += way * length;
    return bar;
  });
  const share = text(at + way * 5, word.y + 4, percent(word.partner.weight), {
    anchor,
    size: 11,
    fill: drawing.colours.muted,
  });
  return label + bars.join("") + share;
}

function legend({ heads, colours }: Drawing, y: number): string[] {
  let x = MARGIN;
  return heads.map(({ name, colour }) => {
    const entry = `<rect x="${x}" y="${y - 9}" width="10" height="10" rx="2" fill="${colour}"/>${text(x + 14, y, name, { size: 11, fill: colours.ink })}`;
    x += 26 + name.length * 6;
    return entry;
  });
}

function text(
  x: number,
  y: number,
  content: string,
  style: { anchor?: string; size: number; weight?: number; fill: string },
): string {
  const escaped = content.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return `<text x="${n(x)}" y="${n(y)}" text-anchor="${style.anchor ?? "start"}" font-size="${style.size}" font-weight="${style.weight ?? 400}" fill="${style.fill}">${escaped}</text>`;
}

function n(value: number): string {
  return String(Math.round(value * 100) / 100);
}
