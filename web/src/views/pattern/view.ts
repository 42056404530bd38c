/**
 * Where the maps are on the page and which part of them is in view: moved by pixels, factors and tokens, never off the maps.
 * All maps show the same part, each of its own text. What moves it says whether it did: when to draw and ask is the engine's.
 */
import type { Rectangle } from "../../look.svelte";
import type { Range } from "../../source/contract";
import { type Chosen, guttersOf, type Pair } from "./axes";
import * as geometry from "./geometry";
import type { Pen } from "./pen";
import { type Shown, shownAs } from "./shown";
import { extentOf, type MapSpec } from "./specs";

/** Pixels that are not enough for long labels. */
const NARROW = 520;
/** Pixels of a token from which a step is one token. */
const LARGE = 11;
/** So many labels are measured: enough to tell how wide a text's are. */
const MEASURED = 512;

export class View {
  /** One, or two beside one another. */
  main: readonly Shown[] = [];
  small: readonly Shown[] = [];
  size: geometry.Size = { width: 0, height: 0 };
  gutters: geometry.Gutters = { left: 80, top: 80, right: 48, bottom: 52 };
  /** Of the first map; null until there is room for it. */
  window: geometry.Window | null = null;
  private room = 0;
  /** Opened when there is room to open it in. */
  private opening: Rectangle | null = null;
  /** What was asked for, while nobody has moved since: a layout that changes must not change it. */
  private asked: Rectangle | null = null;

  constructor(private readonly pen: Pick<Pen, "width">) {}

  get maps(): readonly Shown[] {
    return [...this.main, ...this.small];
  }

  /** What is in view of the first map; null: all of it. */
  get rectangle(): Rectangle | null {
    const main = this.main[0];
    return main && this.window ? geometry.rectangleOf(this.window, main.extent, main.box) : this.opening;
  }

  /** Show these maps; the part in view stays if they are as long as those before. */
  show(main: readonly MapSpec[], small: readonly MapSpec[]): void {
    const before = this.main[0]?.extent;
    const now = main[0] && extentOf(main[0]);
    if (before && now && (before.queries !== now.queries || before.keys !== now.keys)) {
      this.opening = this.rectangle;
      this.window = null;
    }
    this.main = main.map((map, i) => shownAs(map, this.main, i));
    this.small = small.map((map, i) => shownAs(map, this.small, i));
    this.arrange();
  }

  open(rectangle: Rectangle | null): boolean {
    this.opening = this.asked = rectangle;
    const main = this.main[0];
    this.window = main && this.size.width ? this.opened(main) : null;
    return this.window !== null;
  }

  /** The room that there is, in pixels: the maps' height is up to them. */
  resize(width: number, height: number): boolean {
    if (width === this.size.width && height === this.room) return false;
    const rectangle = this.rectangle;
    this.size = { width, height: this.size.height };
    this.room = height;
    if (this.window) this.opening = this.asked ?? rectangle;
    this.window = null;
    this.arrange();
    return true;
  }

  /** Closer or farther, around a point of the canvas or the middle. */
  zoom(factor: number, point?: geometry.Point): boolean {
    const main = this.main[0];
    if (!main || !this.window) return false;
    const map = this.mapAt(point) ?? main;
    const at = point
      ? { x: point.x - map.box.left, y: point.y - map.box.top }
      : { x: main.box.width / 2, y: main.box.height / 2 };
    return this.move(geometry.zoomed(this.window, factor, at, main.extent, main.box));
  }

  pan(right: number, down: number): boolean {
    const main = this.main[0];
    if (!main || !this.window) return false;
    return this.move(geometry.panned(this.window, right, down, main.extent, main.box));
  }

  /** To the part between two points of the canvas. */
  enclose(a: geometry.Point, b: geometry.Point): boolean {
    const map = this.mapAt(a);
    const main = this.main[0];
    if (!map || !main || Math.abs(a.x - b.x) < 4 || Math.abs(a.y - b.y) < 4) return false;
    const low = geometry.placeAt(map, { x: Math.min(a.x, b.x), y: Math.min(a.y, b.y) });
    const high = geometry.placeAt(map, { x: Math.max(a.x, b.x), y: Math.max(a.y, b.y) });
    const range = (from: number, to: number, share: number): Range => [
      Math.max(from, 0) * share,
      Math.max(to, from + 0.01, 0.01) * share,
    ];
    const rectangle = {
      queries: range(low.query, high.query, main.extent.queries / map.extent.queries),
      keys: range(low.key, high.key, main.extent.keys / map.extent.keys),
    };
    return this.move(geometry.windowOf(rectangle, main.extent, main.box));
  }

  /** Until a pair of the first map is well in view. */
  follow({ query, key }: Pair): boolean {
    const main = this.main[0];
    if (!main || !this.window) return false;
    return this.move(geometry.following(this.window, query, key, main.extent, main.box));
  }

  /**
   * The pair that is so many steps away: of a token (`one`, or where tokens are large), or of an eighth of what is in view.
   * From nowhere, the one that is chosen or in the middle.
   */
  stepped(from: Pair | null, chosen: Chosen, right: number, down: number, one: boolean): Pair | null {
    const main = this.main[0];
    if (!main || !this.window) return null;
    const view = geometry.tokensIn(this.window, main.extent, main.box);
    if (!from) return { query: inside(chosen.query, view.queries), key: inside(chosen.key, view.keys) };
    const stride = ([start, stop]: Range, scale: number) =>
      one || scale >= LARGE ? 1 : Math.max(Math.round((stop - start) / 8), 1);
    const within = (token: number, tokens: number) => Math.min(Math.max(token, 0), tokens - 1);
    return {
      query: within(from.query + down * stride(view.queries, this.window.sy), main.extent.queries),
      key: within(from.key + right * stride(view.keys, this.window.sx), main.extent.keys),
    };
  }

  /** Let each map show the part that is in view. False while there is none. */
  spread(): boolean {
    const main = this.main[0];
    if (!main || !this.window) return false;
    for (const map of this.maps)
      map.window = geometry.resized(geometry.alike(this.window, main.extent, map.extent), main.box, map.box);
    return true;
  }

  mapAt(point?: geometry.Point): Shown | undefined {
    return point && this.main.find(({ box }) => geometry.contains(box, point));
  }

  private arrange(): void {
    const main = this.main[0];
    if (!main || !this.size.width) return;
    const labels = this.main.flatMap(({ spec }) => [
      extentOf(spec).queries.toLocaleString("en"), // tokens are numbered where there is no room for their words
      ...(spec.queryLabels ?? []).slice(0, MEASURED),
      ...(spec.keyLabels ?? []).slice(0, MEASURED),
    ]);
    const titled = this.main.some(({ spec }) => spec.title);
    this.gutters = guttersOf(labels, this.size.width < NARROW, titled, this.pen);
    const count = this.main.length === 2 ? 2 : 1;
    const placed = geometry.layout(this.size.width, this.room, count, this.small.length, this.gutters);
    const before = main.box;
    [...placed.plots, ...placed.small].forEach((box, i) => {
      (this.maps[i] as Shown).box = box;
    });
    this.size = { width: this.size.width, height: placed.height };
    if (this.window && (before.width !== main.box.width || before.height !== main.box.height)) {
      this.opening = this.asked ?? geometry.rectangleOf(this.window, main.extent, before);
      this.window = null;
    }
    this.window ??= this.opened(main);
  }

  private opened({ extent, box }: Shown): geometry.Window {
    return this.opening ? geometry.windowOf(this.opening, extent, box) : geometry.whole(extent, box);
  }

  private move(window: geometry.Window): boolean {
    const before = this.window;
    if (before && before.x === window.x && before.y === window.y && before.sx === window.sx && before.sy === window.sy)
      return false;
    this.window = window;
    this.asked = null;
    return true;
  }
}

/** A token in a range, or else the one in its middle. */
function inside(token: number | null, [start, stop]: Range): number {
  return token !== null && token >= start && token < stop ? token : Math.floor((start + stop - 1) / 2);
}
