/** Where words stand: two columns in one window, each a list that scrolls. Lengths in CSS pixels. */
import type { Range } from "../../source/contract";
import type { Row, Side } from "./rows";

/** Height of a word's line, and size of its letters, on a screen that is not large. */
export const LINE = 26;
export const FONT = 15;
/** Lines beyond the edges that have their text ready. */
const SPARE = 2;

/** A column of words. */
export interface Column {
  /** Units that are shown, in order. */
  readonly shown: Int32Array;
  /** Where each unit stands among them; -1: it does not. */
  readonly slots: Int32Array;
  /** How far it is scrolled. */
  readonly offset: number;
  /** How much of it is seen. */
  readonly height: number;
  /** Height of a line. */
  readonly line: number;
}

/** How much larger letters and lines are where there is much room: read from farther away. */
export function sizeOf(width: number): number {
  const share = (width - LARGE.from) / (LARGE.to - LARGE.from);
  return 1 + (LARGE.size - 1) * Math.min(Math.max(share, 0), 1);
}

const LARGE = { from: 1500, to: 3700, size: 1.5 };

/** The place of each unit among those shown; -1 where it is not. */
export function slotsOf(shown: Int32Array, units: number): Int32Array {
  const slots = new Int32Array(units).fill(-1);
  shown.forEach((unit, slot) => {
    slots[unit] = slot;
  });
  return slots;
}

/** How far a column is scrolled, so that both reach their ends together. `top`: of the longer one. */
export function offsetOf(top: number, count: number, longest: number, height: number, line = LINE): number {
  const most = Math.max(0, longest * line - height);
  const own = Math.max(0, count * line - height);
  return most === 0 ? 0 : (Math.min(Math.max(top, 0), most) / most) * own;
}

/** The slots that are seen, with some to spare. */
export function visible(column: Column, spare = SPARE): Range {
  const first = Math.max(0, Math.floor(column.offset / column.line) - spare);
  const stop = Math.min(column.shown.length, Math.ceil((column.offset + column.height) / column.line) + spare);
  return [first, Math.max(first, stop)];
}

/** The middle of a slot's line. */
export function middle(column: Column, slot: number): number {
  return (slot + 0.5) * column.line - column.offset;
}

/** -1: a slot is above the window, 1: below it, 0: in it. */
export function beyond(column: Column, slot: number): -1 | 0 | 1 {
  const y = middle(column, slot);
  return y < 0 ? -1 : y > column.height ? 1 : 0;
}

/** How far to scroll so that a slot is in the window; `top` if it is. */
export function scrolledTo(slot: number, top: number, height: number, line = LINE): number {
  // One line is kept free at each end, for what is said about words beyond.
  if (slot * line < top + line) return Math.max(0, (slot - 1) * line);
  if ((slot + 1) * line > top + height - line) return (slot + 2) * line - height;
  return top;
}

/** Widths of what stands beside each other: bars, labels, lines, labels, bars. */
export interface Widths {
  readonly labels: Readonly<Record<Side, number>>;
  /** Room for shares; none where there is not enough for both. */
  readonly bars: Readonly<Record<Side, number>>;
  /** Of the lines. */
  readonly span: number;
}

const NARROW = 620;

/** `longest`: what the labels would need. `side`: the one that is asked; the other has the shares. */
export function widthsOf(width: number, longest: Readonly<Record<Side, number>>, side: Side): Widths {
  const narrow = width < NARROW;
  const size = sizeOf(width);
  const most = narrow ? Math.max(56, width * 0.25) : Math.min(200 * size, width * 0.2);
  const labels = { queries: Math.min(longest.queries, most), keys: Math.min(longest.keys, most) };
  const room = narrow ? 62 : Math.round(108 * size);
  const bars = { queries: !narrow || side === "keys" ? room : 0, keys: !narrow || side === "queries" ? room : 0 };
  const left = width - labels.queries - labels.keys - bars.queries - bars.keys - 4;
  return { labels, bars, span: Math.max(70, Math.min(Math.max(440, Math.round(width * 0.35)), left)) };
}

/** A line from a unit to its partner. */
export interface Line {
  /** Heights at which it leaves the column that was asked, and reaches the other. */
  readonly from: number;
  readonly to: number;
  readonly weight: number;
  /** Place among the drawn heads. */
  readonly head: number;
  /** Whether the near or far end is out of the window; it fades there. */
  readonly fades: "none" | "near" | "far" | "both";
}

/** The lines of some units, weak ones first. `rows(unit)`: [head]. `most`: how many of each row at most. */
export function linesOf(
  near: Column,
  far: Column,
  units: Iterable<number>,
  rows: (unit: number) => readonly (Row | undefined)[],
  most = Number.POSITIVE_INFINITY,
): Line[] {
  const lines: Line[] = [];
  for (const unit of units) {
    const slot = near.slots[unit] ?? -1;
    if (slot < 0) continue;
    const from = edged(near, slot);
    rows(unit).forEach((row, head) => {
      const count = Math.min(row?.partners.length ?? 0, most);
      for (let rank = 0; rank < count; rank++) {
        const there = far.slots[row?.partners[rank] as number] ?? -1;
        if (there < 0) continue;
        const to = edged(far, there);
        const fades = from.out ? (to.out ? "both" : "near") : to.out ? "far" : "none";
        lines.push({ from: from.y, to: to.y, weight: row?.weights[rank] as number, head, fades });
      }
    });
  }
  return lines.sort((a, b) => a.weight - b.weight);
}

function edged(column: Column, slot: number): { y: number; out: boolean } {
  const way = beyond(column, slot);
  if (way === 0) return { y: middle(column, slot), out: false };
  return { y: way < 0 ? 0 : column.height, out: true };
}
