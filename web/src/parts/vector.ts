/** A vector as a strip: which cells have which depth of colour, and how its numbers are written. */

/** Depths of colour of each sign; more are not told apart by eye. */
export const DEPTHS = 24;

/** Cells of one sign and depth, drawn at once: thousands of cells are a few paths. */
export interface Layer {
  sign: 1 | -1;
  /** Share of the full colour. */
  opacity: number;
  /** In a drawing where a cell is 1 wide and 1 high. */
  path: string;
}

/** The number at which the colour is full: the largest, or in a long strip the one that 2 of 100 exceed. */
export function fullAt(numbers: ArrayLike<number>): number {
  const sizes = Array.from(numbers, Math.abs).filter(Number.isFinite);
  if (sizes.length === 0) return 1;
  sizes.sort((a, b) => a - b);
  const place = sizes.length > 64 ? Math.floor(0.98 * (sizes.length - 1)) : sizes.length - 1;
  return sizes[place] || sizes[sizes.length - 1] || 1;
}

/** Zero has no colour; a number that is none has none either, and its cell is crossed (`holes`). */
export function layersOf(numbers: ArrayLike<number>, full: number): Layer[] {
  const cells = new Map<number, string[]>();
  for (let i = 0; i < numbers.length; i++) {
    const value = numbers[i] as number;
    const depth = Math.round(Math.min(Math.abs(value) / full, 1) * DEPTHS);
    if (!(depth > 0)) continue;
    const which = value < 0 ? -depth : depth;
    const listed = cells.get(which) ?? [];
    cells.set(which, listed);
    listed.push(`M${i} 0h1v1h-1z`);
  }
  return Array.from(cells, ([depth, paths]) => ({
    sign: depth < 0 ? -1 : 1,
    opacity: Math.abs(depth) / DEPTHS,
    path: paths.join(""),
  }));
}

/** A path of small lines in the cells of negative numbers, their sign without colour; not where the colour is too pale to matter. */
export function minusPath(numbers: ArrayLike<number>, full: number): string {
  const least = (1.5 / DEPTHS) * full;
  return Array.from(numbers, (value, i) => (value <= -least ? `M${i + 0.34} .5h.32` : "")).join("");
}

/** A path of crosses in the cells that hold no number. */
export function holesPath(numbers: ArrayLike<number>): string {
  return Array.from(numbers, (value, i) => (Number.isNaN(value) ? `M${i} 0l1 1M${i + 1} 0l-1 1` : "")).join("");
}

/** The vector's length. */
export function length(vector: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < vector.length; i++) sum += (vector[i] as number) ** 2;
  return Math.sqrt(sum);
}

/** The shortest decimal that is this single-precision number and no other; of other numbers, nine digits. */
export function exact(value: number): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "not a number" : value < 0 ? "−∞" : "∞";
  const single = Math.fround(value) === value;
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (single ? Math.fround(short) === value : short === value) return written(short);
  }
  return written(Number(value.toPrecision(9)));
}

function written(value: number): string {
  return String(value).replaceAll("-", "−");
}

/** Numbers in rows of a table, with the place of each row's first. */
export function tableRows(numbers: ArrayLike<number>, columns: number): { start: number; cells: number[] }[] {
  const all = Array.from(numbers);
  return Array.from({ length: Math.ceil(all.length / columns) }, (_, row) => ({
    start: row * columns,
    cells: all.slice(row * columns, (row + 1) * columns),
  }));
}
