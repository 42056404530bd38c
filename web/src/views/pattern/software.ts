/** Maps drawn pixel by pixel, where the browser has no WebGL2: the same picture from the same tiles and scale. */
import { entryOf } from "../../model/colour";
import { eachTile, emptyPatch, NOT_A_NUMBER, type Painter, type Patch, patch, type Scene } from "./scene";
import { cellOf, type Tile } from "./tiles";

export class CanvasPainter implements Painter {
  private readonly patch = emptyPatch();

  constructor(private readonly canvas: HTMLCanvasElement) {}

  draw(scene: Scene): void {
    const [width, height] = [Math.round(scene.size.width * scene.ratio), Math.round(scene.size.height * scene.ratio)];
    this.canvas.width = width;
    this.canvas.height = height;
    const context = this.canvas.getContext("2d");
    if (!context || !width || !height) return;
    const image = context.createImageData(width, height);
    paint(image, scene, this.patch);
    context.putImageData(image, 0, 0);
  }

  drop(): void {}

  destroy(): void {}
}

/** What an image is to this painter: the browser's ImageData, or its like in a test. */
export interface Image {
  readonly data: Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
}

export function paint(image: Image, scene: Scene, seen: Patch = emptyPatch()): void {
  const pixels = new Uint32Array(image.data.buffer);
  pixels.fill(packed(scene.ground));
  for (const panel of scene.panels) {
    eachTile(panel, (tile, other) => {
      if (patch(seen, panel, tile, other)) paintPatch(pixels, image, scene, seen, tile, other);
    });
  }
}

function paintPatch(
  pixels: Uint32Array,
  image: Image,
  { scale, ratio, nothing }: Scene,
  seen: Patch,
  tile: Tile,
  other: Tile | null,
): void {
  const table = new Uint32Array(scale.table.buffer);
  const [blank, odd, even] = [packed(nothing), packed(NOT_A_NUMBER[0]), packed(NOT_A_NUMBER[1])];
  const columns = along(seen.left * ratio, seen.right * ratio, image.width, seen.key, seen.keys);
  const rows = along(seen.top * ratio, seen.bottom * ratio, image.height, seen.query, seen.queries);
  const keyCells = columns.tokens.map((key) => cellOf(key, tile.keys, tile.columns));
  const otherCells = columns.tokens.map((key) => (other ? cellOf(key, other.keys, other.columns) : 0));
  rows.tokens.forEach((query, i) => {
    const line = (rows.first + i) * image.width + columns.first;
    const start = cellOf(query, tile.queries, tile.rows) * tile.columns;
    const otherStart = other ? cellOf(query, other.queries, other.rows) * other.columns : 0;
    for (let j = 0; j < keyCells.length; j++) {
      const weight = tile.weights[start + (keyCells[j] as number)] as number;
      const less = other ? (other.weights[otherStart + (otherCells[j] as number)] as number) : 0;
      const difference = weight - less;
      if (Number.isNaN(difference)) pixels[line + j] = (rows.first + i + columns.first + j) % 8 < 4 ? odd : even;
      else if (weight === 0 && less === 0) pixels[line + j] = blank;
      else pixels[line + j] = table[entryOf(scale, difference)] as number;
    }
  });
}

/** The pixels whose middles are between two places, and the token at each. */
function along(
  from: number,
  to: number,
  pixels: number,
  token: number,
  tokens: number,
): { first: number; tokens: Int32Array } {
  const first = Math.max(Math.ceil(from - 0.5), 0);
  const last = Math.min(Math.ceil(to - 0.5), pixels);
  const at = (_: unknown, i: number) =>
    Math.floor(token + Math.min((first + i + 0.5 - from) / (to - from), 1 - 1e-12) * tokens);
  return { first, tokens: Int32Array.from({ length: Math.max(last - first, 0) }, at) };
}

function packed([red, green, blue]: readonly [number, number, number]): number {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
