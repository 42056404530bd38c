/** Where heads stand on the canvas: a matrix of layers and heads, or a flow in the order of a statistic. In CSS pixels. */
import type { Place } from "../../look.svelte";

/** A head's square, its frame within. */
export interface Cell extends Place {
  readonly x: number;
  readonly y: number;
}

export interface Plan {
  readonly cells: readonly Cell[];
  /** The cells of each row, as places in `cells`. */
  readonly rows: readonly (readonly number[])[];
  /** A cell's side, its frame, and the distance to the next one. */
  readonly size: number;
  readonly frame: number;
  readonly pitch: number;
  readonly rise: number;
  /** Space for the layers' names at the left, and for the heads' numbers above. */
  readonly left: number;
  readonly above: number;
  /** Whether each cell has its name below. */
  readonly named: boolean;
  readonly width: number;
  readonly height: number;
}

const [SMALLEST, LARGE, LARGEST] = [20, 104, 200];
/** Cells grow beyond LARGE where the window is high enough for so many rows of a flow; of a matrix for all of its rows. */
const ROWS = 6;
/** Between the mean of a layer and its heads. */
const APART = 10;
const NAME = 16;
/** Cells at least so large have their names below. */
const NAMED_FROM = 44;
/** Beside cells at least so large, text is larger too. */
export const LARGE_TEXT_FROM = 130;
/** What a flow should fill at least, if the window is wide. */
const FILLED = 620;

/** What the window has for the heads. */
export interface Room {
  readonly width: number;
  readonly height: number;
}

/** Rows are layers, columns heads; the first column is the layer's mean. `heads`: how many each site has. `framed`: frames have a meaning, and room. */
export function matrix(heads: readonly number[], { width, height }: Room, left: number, framed = true): Plan {
  const columns = Math.max(0, ...heads);
  const above = 22;
  const pitch = clamped((width - left - APART) / (columns + 1), (height - above) / heads.length);
  const shape = { ...sizes(pitch, framed), pitch, rise: pitch, left, above, named: false };
  const cells: Cell[] = [];
  const rows = heads.map((count, site) => {
    const y = above + site * pitch;
    const row = [cells.push({ site, head: "mean", x: left, y }) - 1];
    for (let head = 0; head < count; head++)
      row.push(cells.push({ site, head, x: left + APART + (head + 1) * pitch, y }) - 1);
    return row;
  });
  return { ...shape, cells, rows, width: left + APART + (columns + 1) * pitch, height: above + heads.length * pitch };
}

/** One head after the other, row by row. */
export function flow(order: readonly Place[], { width, height }: Room, framed = true): Plan {
  const pitch = clamped(Math.sqrt((width * Math.max(FILLED, height)) / Math.max(order.length, 1)), height / ROWS);
  const named = pitch >= NAMED_FROM;
  const columns = Math.max(1, Math.floor(width / pitch));
  const rise = pitch + (named ? NAME : 0);
  const rows: number[][] = [];
  const cells = order.map((place, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    rows[row] = [...(rows[row] ?? []), i];
    return { ...place, x: column * pitch, y: row * rise };
  });
  return {
    ...sizes(pitch, framed),
    pitch,
    rise,
    left: 0,
    above: 0,
    named,
    cells,
    rows,
    width: columns * pitch,
    height: rows.length * rise,
  };
}

/** A pitch that is no larger than is good to look at; `high`: how high the window lets a row be. */
function clamped(pitch: number, high: number): number {
  const most = Math.min(Math.max(LARGE, high), LARGEST);
  return Math.floor(Math.min(Math.max(pitch, SMALLEST), most));
}

function sizes(pitch: number, framed: boolean): { size: number; frame: number } {
  const apart = pitch < 32 ? 2 : pitch < 56 ? 4 : 6;
  const frame = pitch < 32 ? 2 : pitch < 56 ? 3 : 4;
  return { size: pitch - apart, frame: framed ? frame : 1 };
}

/** The cell at a point; null between them. */
export function cellAt(plan: Plan, x: number, y: number): number | null {
  const row = plan.rows[Math.floor((y - plan.above) / plan.rise)];
  const found = row?.find((i) => {
    const cell = plan.cells[i] as Cell;
    return x >= cell.x && x < cell.x + plan.pitch && y < cell.y + plan.pitch;
  });
  return found ?? null;
}

/** Where a cell is: its row, and its place in it. */
export function rowOf(plan: Plan, cell: number): [row: number, column: number] {
  const row = plan.rows.findIndex((cells) => cell <= (cells.at(-1) as number));
  return row < 0 ? [0, 0] : [row, cell - (plan.rows[row]?.[0] ?? 0)];
}

/** The cell that a key leads to; null if it is no such key. */
export function moved(plan: Plan, cell: number, key: string, whole: boolean): number | null {
  const [row, column] = rowOf(plan, cell);
  const last = plan.rows.length - 1;
  const at = (r: number, c: number) => {
    const cells = plan.rows[Math.min(Math.max(r, 0), last)] ?? [];
    return cells[Math.min(Math.max(c, 0), cells.length - 1)] ?? cell;
  };
  if (key === "ArrowRight") return at(row, column + 1);
  if (key === "ArrowLeft") return at(row, column - 1);
  if (key === "ArrowDown") return at(row + 1, column);
  if (key === "ArrowUp") return at(row - 1, column);
  if (key === "PageDown") return at(row + 5, column);
  if (key === "PageUp") return at(row - 5, column);
  if (key === "Home") return whole ? at(0, 0) : at(row, 0);
  if (key === "End") return whole ? at(last, Number.MAX_SAFE_INTEGER) : at(row, Number.MAX_SAFE_INTEGER);
  return null;
}
