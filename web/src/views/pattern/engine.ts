/**
 * The maps on the screen, moved, drawn and fed with tiles. What happens in every frame happens here, outside of Svelte;
 * the component says what is to be shown and hears what came of it.
 *
 * A change of the view is drawn at the next frame from what is there. When the view has rested for a moment, what is
 * missing is asked for; when nothing is missing, the scale is made for what is in view, and the sums at the sides are asked for.
 */

import type { Rectangle } from "../../look.svelte";
import { type PaletteName, type Scale, scaleOf, Tally, type Tone } from "../../model/colour";
import { type Range, type Source, TILE } from "../../source/contract";
import { drawFrame, drawSmall, type Frame, guttersOf, mapBox, type Pair, type Sums, type Theme } from "./axes";
import { countsOf, tallyOf } from "./facts";
import * as geometry from "./geometry";
import { CanvasPen, type Pen, SvgPen } from "./pen";
import { WebglPainter } from "./renderer";
import type { Painter, Panel, Scene } from "./scene";
import { CanvasPainter } from "./software";
import { themeOf, whenThemeChanges } from "./theme";
import {
  cellOf,
  cellRange,
  drawn,
  nameOf,
  placesOf,
  type Subject,
  type Tile,
  TileCache,
  TileLoader,
  type Wanted,
} from "./tiles";

/** A map to be shown. */
export interface MapSpec {
  readonly subject: Subject;
  /** What is taken off it. */
  readonly against: Subject | null;
  readonly title: string;
  readonly queryLabels: readonly string[] | null;
  readonly keyLabels: readonly string[] | null;
  /** Which keys are special tokens, where the scale is to leave them out. */
  readonly specialKeys: ArrayLike<number> | null;
}

export interface Spec {
  /** One, or two beside one another. */
  readonly maps: readonly MapSpec[];
  readonly small: readonly MapSpec[];
  readonly tone: Tone;
  readonly palette: PaletteName;
  readonly chosen: { query: number | null; key: number | null };
}

/** What is shown just now. */
export interface State {
  readonly scale: Scale;
  /** Whether special tokens' columns were left out of the scale. */
  readonly leftOut: boolean;
  /** Tokens in view. */
  readonly view: { queries: Range; keys: Range };
  /** Tokens of a cell, along the queries and the keys. */
  readonly cell: readonly [number, number];
  readonly missing: number;
  readonly error: unknown;
  /** How the cells in view were reduced: what the source said, not what it was asked. */
  readonly reduce: "mean" | "max" | "sum" | null;
  readonly exact: boolean;
  readonly small: readonly geometry.Box[];
  readonly height: number;
  /** Whether all of the map is in view, and so cannot be moved. */
  readonly whole: boolean;
}

/** What is under the pointer. `exact`: undefined while it is on its way, null where it cannot be had. */
export interface Pointed extends Pair {
  readonly map: number;
  readonly exact: number | undefined | null;
  readonly cell: { queries: Range; keys: Range; weight: number } | null;
}

/** A sum at a side that is pointed at. */
export interface PointedSum {
  readonly map: number;
  readonly side: "queries" | "keys";
  readonly tokens: Range;
  readonly sum: number;
}

export interface Hears {
  /** The view rests here. */
  rested(rectangle: Rectangle | null): void;
  shows(state: State): void;
  /** All that is in view is there. */
  settled(): void;
  points(at: Pointed | PointedSum | null): void;
}

interface Shown {
  spec: MapSpec;
  extent: geometry.Extent;
  box: geometry.Box;
  window: geometry.Window;
  level: number;
  signature: string;
  tiles: readonly Tile[];
  against: readonly Tile[] | null;
  wanted: Wanted[];
  special: Int32Array | null;
  sums: Sums | null;
}

// Milliseconds of rest until tiles are asked for, the weight that is pointed at, the link is written, and the sums are asked for;
// between two scales, while tiles come.
const REST = 60;
const POINT = 20;
const LINK = 150;
const SETTLE = 180;
const RESCALE = 200;
const BYTES = 96 << 20;

export class Engine {
  private readonly painter: Painter;
  private readonly cache: TileCache;
  private readonly loader: TileLoader;
  private readonly pen: CanvasPen;
  private theme: Theme;
  private spec: Spec | null = null;
  private main: Shown[] = [];
  private small: Shown[] = [];
  private gutters: geometry.Gutters = { left: 80, top: 80, right: 48, bottom: 52 };
  private size: geometry.Size = { width: 0, height: 0 };
  private room = 0;
  private window: geometry.Window | null = null;
  /** Opened when there is room to open it in. */
  private opening: Rectangle | null = null;
  /** What was asked for, while nobody has moved since: a layout that changes must not change it. */
  private asked: Rectangle | null = null;
  private scale: Scale = scaleOf(new Tally(), "linear", "saccade", false);
  private leftOut = false;
  private frame = 0;
  private rest: ReturnType<typeof setTimeout> | undefined;
  private pointing: ReturnType<typeof setTimeout> | undefined;
  private settling: ReturnType<typeof setTimeout> | undefined;
  private telling: ReturnType<typeof setTimeout> | undefined;
  private asking = new AbortController();
  private askingSums = new AbortController();
  private pointed: Pointed | null = null;
  private readonly weights = new Map<string, number>();
  private readonly unhear: () => void;
  private resting = true;
  private outdated = true;
  private scaled = Number.NEGATIVE_INFINITY;

  constructor(
    canvas: HTMLCanvasElement,
    private readonly overlay: HTMLCanvasElement,
    private readonly canvasOf: () => HTMLCanvasElement,
    private readonly source: Source,
    private readonly hears: Hears,
  ) {
    this.painter = WebglPainter.on(canvas, () => this.request()) ?? new CanvasPainter(canvas);
    this.cache = new TileCache(BYTES, (tile) => this.painter.drop(tile));
    this.loader = new TileLoader(
      (key, signal) => source.ask("tile", key, signal),
      this.cache,
      () => this.came(),
    );
    this.pen = new CanvasPen(overlay.getContext("2d") as CanvasRenderingContext2D);
    this.theme = themeOf(overlay.parentElement as HTMLElement);
    this.unhear = whenThemeChanges(overlay, () => {
      this.theme = themeOf(overlay.parentElement as HTMLElement);
      this.request();
    });
  }

  /** Whether maps are drawn without the graphics card. */
  get plain(): boolean {
    return this.painter instanceof CanvasPainter;
  }

  /** Show these maps; the part in view stays if they are as long as those before. */
  show(spec: Spec): void {
    const before = this.main[0]?.extent;
    const now = spec.maps[0]?.subject.extent;
    const moved = this.names() !== this.names(spec);
    if (before && now && (before.queries !== now.queries || before.keys !== now.keys)) {
      this.opening = this.rectangle;
      this.window = null;
    }
    this.spec = spec;
    if (this.pointed) this.pointAt(0, null);
    this.main = spec.maps.map((map, i) => shown(map, this.main, i));
    this.small = spec.small.map((map, i) => shown(map, this.small, i));
    this.arrange();
    if (moved) this.forgetSums();
    this.rescale();
    this.moved();
  }

  /** Tokens that are chosen: the only part of a spec that changes often. */
  choose(chosen: Spec["chosen"]): void {
    if (!this.spec) return;
    this.spec = { ...this.spec, chosen };
    this.request(false);
  }

  /** This is in view. */
  open(rectangle: Rectangle | null): void {
    this.opening = this.asked = rectangle;
    const main = this.main[0];
    if (!main || !this.size.width) {
      this.window = null;
      return;
    }
    this.window = rectangle
      ? geometry.windowOf(rectangle, main.extent, main.box)
      : geometry.whole(main.extent, main.box);
    this.moved();
  }

  /** The room that there is, in pixels: the maps' height is up to them. */
  resize(width: number, height: number): void {
    if (width === this.size.width && height === this.room) return;
    const rectangle = this.rectangle;
    this.size = { width, height: this.size.height };
    this.room = height;
    if (this.window) this.opening = this.asked ?? rectangle;
    this.window = null;
    this.arrange();
    this.moved();
  }

  get rectangle(): Rectangle | null {
    const main = this.main[0];
    return main && this.window ? geometry.rectangleOf(this.window, main.extent, main.box) : this.opening;
  }

  /** Closer or farther, around a point of the canvas or the middle. False if that changed nothing. */
  zoom(factor: number, point?: { x: number; y: number }): boolean {
    const main = this.main[0];
    if (!main || !this.window) return false;
    const map = this.mapAt(point) ?? main;
    const at = point
      ? { x: point.x - map.box.left, y: point.y - map.box.top }
      : { x: main.box.width / 2, y: main.box.height / 2 };
    return this.move(geometry.zoomed(this.window, factor, at, main.extent, main.box));
  }

  /** Closer or farther, around the pair that is pointed at. */
  zoomAtPointed(factor: number): boolean {
    const map = this.pointed && this.main[this.pointed.map];
    if (!map || !this.pointed) return this.zoom(factor);
    const x = map.box.left + (this.pointed.key + 0.5 - map.window.x) * map.window.sx;
    const y = map.box.top + (this.pointed.query + 0.5 - map.window.y) * map.window.sy;
    return this.zoom(factor, { x, y });
  }

  pan(right: number, down: number): boolean {
    const main = this.main[0];
    if (!main || !this.window) return false;
    return this.move(geometry.panned(this.window, right, down, main.extent, main.box));
  }

  /** To the beginning or the end. */
  jump(end: boolean): void {
    const far = end ? 1e12 : -1e12;
    this.pan(far, far);
  }

  /** Look at the part between two points of the canvas. */
  enclose(a: { x: number; y: number }, b: { x: number; y: number }): void {
    const map = this.mapAt(a);
    const main = this.main[0];
    if (!map || !main || Math.abs(a.x - b.x) < 4 || Math.abs(a.y - b.y) < 4) return;
    const token = (x: number, y: number) => ({
      key: map.window.x + (x - map.box.left) / map.window.sx,
      query: map.window.y + (y - map.box.top) / map.window.sy,
    });
    const [low, high] = [token(Math.min(a.x, b.x), Math.min(a.y, b.y)), token(Math.max(a.x, b.x), Math.max(a.y, b.y))];
    const keys = main.extent.keys / map.extent.keys;
    const queries = main.extent.queries / map.extent.queries;
    const range = (from: number, to: number, share: number): Range => [
      Math.max(from, 0) * share,
      Math.max(to, from + 0.01, 0.01) * share,
    ];
    const rectangle = { queries: range(low.query, high.query, queries), keys: range(low.key, high.key, keys) };
    this.move(geometry.windowOf(rectangle, main.extent, main.box));
  }

  /** Point at a place of the canvas; null: nowhere. */
  point(at: { x: number; y: number } | null): Pointed | PointedSum | null {
    const map = at && this.mapAt(at);
    const pair = map && geometry.pairAt(map.window, { x: at.x - map.box.left, y: at.y - map.box.top }, map.extent);
    if (map && pair) return this.pointAt(this.main.indexOf(map), pair);
    this.pointAt(0, null);
    const sum = at && this.sumAt(at);
    if (sum) this.hears.points(sum);
    return sum;
  }

  /** Move the pointed pair by tokens; the view follows. From nowhere, it begins at what is chosen or in the middle. */
  step(right: number, down: number, one: boolean): void {
    const main = this.main[0];
    if (!main || !this.window) return;
    const view = geometry.tokensIn(this.window, main.extent, main.box);
    const stride = (range: Range, scale: number) =>
      one || scale >= 11 ? 1 : Math.max(Math.round((range[1] - range[0]) / 8), 1);
    const from = this.pointed ?? this.beginning(view);
    const began = this.pointed === null;
    const within = (token: number, tokens: number) => Math.min(Math.max(token, 0), tokens - 1);
    const query = within(from.query + (began ? 0 : down * stride(view.queries, this.window.sy)), main.extent.queries);
    const key = within(from.key + (began ? 0 : right * stride(view.keys, this.window.sx)), main.extent.keys);
    this.move(geometry.following(this.window, query, key, main.extent, main.box));
    this.pointAt(0, { query, key });
  }

  retry(): void {
    this.loader.retry();
    this.moved();
  }

  /** What is in view of a map, from which tiles. */
  seen(map: number): {
    spec: MapSpec;
    tiles: readonly Tile[];
    against: readonly Tile[] | null;
    view: { queries: Range; keys: Range };
  } | null {
    const it = this.main[map];
    return it ? { ...it, view: geometry.tokensIn(it.window, it.extent, it.box) } : null;
  }

  /** A box around everything that is drawn, as a picture. */
  async png(): Promise<Blob> {
    const canvas = this.composed(true);
    return await new Promise((done, failed) => {
      canvas.toBlob(
        (blob) => (blob ? done(blob) : failed(new Error("The picture is too large to be saved."))),
        "image/png",
      );
    });
  }

  svg(): string {
    const picture = this.composed(false).toDataURL("image/png");
    const pen = new SvgPen(this.pen);
    this.drawAround(pen);
    return pen.document(this.size.width, this.size.height, this.theme.ground, picture);
  }

  destroy(): void {
    cancelAnimationFrame(this.frame);
    for (const timer of [this.rest, this.pointing, this.settling, this.telling]) clearTimeout(timer);
    this.loader.stop();
    this.asking.abort();
    this.askingSums.abort();
    this.unhear();
    this.cache.clear();
    this.painter.destroy();
  }

  private names(spec = this.spec): string {
    return (spec?.maps ?? [])
      .map(({ subject, against }) => `${nameOf(subject)} - ${against ? nameOf(against) : ""}`)
      .join();
  }

  private mapAt(point?: { x: number; y: number }): Shown | undefined {
    return (
      point &&
      this.main.find(
        ({ box }) =>
          point.x >= box.left && point.x < box.left + box.width && point.y >= box.top && point.y < box.top + box.height,
      )
    );
  }

  private arrange(): void {
    if (!this.spec || !this.size.width || !this.main.length) return;
    const labels = this.main.flatMap(({ spec }) => [
      spec.subject.extent.queries.toLocaleString("en"), // tokens are numbered where there is no room for their words
      ...(spec.queryLabels ?? []).slice(0, 512),
      ...(spec.keyLabels ?? []).slice(0, 512),
    ]);
    this.gutters = guttersOf(
      labels,
      this.size.width < 520,
      this.main.some(({ spec }) => spec.title),
      this.pen,
    );
    const placed = geometry.layout(
      this.size.width,
      this.room,
      this.main.length === 2 ? 2 : 1,
      this.small.length,
      this.gutters,
    );
    const before = this.main[0]?.box;
    this.main.forEach((map, i) => {
      map.box = placed.plots[i] as geometry.Box;
    });
    this.small.forEach((map, i) => {
      map.box = placed.small[i] as geometry.Box;
    });
    this.size = { width: this.size.width, height: placed.height };
    const main = this.main[0] as Shown;
    if (this.window && before && (before.width !== main.box.width || before.height !== main.box.height)) {
      this.opening = this.asked ?? geometry.rectangleOf(this.window, main.extent, before);
      this.window = null;
    }
    this.window ??= this.opening
      ? geometry.windowOf(this.opening, main.extent, main.box)
      : geometry.whole(main.extent, main.box);
  }

  private move(window: geometry.Window): boolean {
    const before = this.window;
    if (before && before.x === window.x && before.y === window.y && before.sx === window.sx && before.sy === window.sy)
      return false;
    this.window = window;
    this.asked = null;
    this.moved();
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.hears.rested(this.rectangle), LINK);
    return true;
  }

  private moved(): void {
    this.resting = false;
    clearTimeout(this.settling);
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.rests(), REST);
    this.request();
  }

  private rests(): void {
    this.resting = true;
    this.plan();
    const everything = [...this.main, ...this.small].flatMap(({ wanted }) => wanted);
    this.loader.want(everything);
    this.came();
  }

  /** A tile came, or none is missing. */
  private came(): void {
    for (const map of [...this.main, ...this.small]) map.signature = "";
    this.request();
    if (!this.resting) return;
    this.plan();
    const { missing } = this.loader;
    const now = performance.now();
    if (missing === 0 || now - this.scaled > RESCALE) {
      this.rescale();
      this.scaled = now;
    }
    this.tell();
    clearTimeout(this.settling);
    if (missing === 0 && this.main.length) this.settling = setTimeout(() => this.settle(), SETTLE);
  }

  private settle(): void {
    void this.askSums();
    this.hears.settled();
  }

  private tell(error: unknown = this.loader.error): void {
    const main = this.main[0];
    if (!main) return;
    const [coarsest] = main.tiles;
    this.hears.shows({
      scale: this.scale,
      leftOut: this.leftOut,
      view: geometry.tokensIn(main.window, main.extent, main.box),
      cell: coarsest ? cellSize(coarsest) : [1, 1],
      missing: this.loader.missing,
      error,
      reduce: coarsest?.reduce ?? null,
      exact: main.tiles.length > 0 && main.tiles.every(({ exact }) => exact),
      small: this.small.map(({ box }) => box),
      height: this.size.height,
      whole: this.rectangle === null,
    });
  }

  /** Where each map is, and from which tiles it is drawn. Little happens where that is the same as before. */
  private plan(): void {
    const main = this.main[0];
    if (!main || !this.window) return;
    for (const map of this.main)
      this.planOne(map, map === main ? this.window : geometry.alike(this.window, main.extent, map.extent));
    for (const map of this.small) {
      this.planOne(map, geometry.resized(geometry.alike(this.window, main.extent, map.extent), main.box, map.box));
    }
  }

  private planOne(map: Shown, window: geometry.Window): void {
    map.window = window;
    map.level = geometry.levelOf(window, map.extent, map.box);
    const { queries, keys } = geometry.tokensIn(window, map.extent, map.box);
    const tile = TILE * 2 ** map.level;
    const signature = `${map.level} ${Math.floor(queries[0] / tile)} ${Math.ceil(queries[1] / tile)} ${Math.floor(keys[0] / tile)} ${Math.ceil(keys[1] / tile)}`;
    if (signature === map.signature) return;
    map.signature = signature;
    const { subject, against } = map.spec;
    const places = placesOf(map.level, queries, keys, subject.extent);
    map.tiles = drawn(this.cache, subject, places).tiles;
    map.wanted = places.map((place) => ({ subject, place }));
    map.against = null;
    if (against) {
      const less = placesOf(
        Math.min(map.level, coarsestLevel(against.extent)),
        clip(queries, against.extent.queries),
        clip(keys, against.extent.keys),
        against.extent,
      );
      map.against = drawn(this.cache, against, less).tiles;
      map.wanted = map.wanted.concat(less.map((place) => ({ subject: against, place })));
    }
    this.cache.touch(map.tiles);
    if (map.against) this.cache.touch(map.against);
  }

  /** Make the scale for what is in view. */
  private rescale(): void {
    if (!this.spec) return;
    this.plan();
    const { tone, palette } = this.spec;
    const signed = this.main.some(({ spec }) => spec.against);
    this.leftOut = false;
    let tally = this.tally(true);
    if (tally.largest === 0 && this.leftOut) {
      this.leftOut = false;
      tally = this.tally(false);
    }
    if (tally.largest > 0 || this.loader.missing === 0) this.scale = scaleOf(tally, tone, palette, signed);
    this.request();
  }

  private tally(ordinary: boolean): Tally {
    const tally = new Tally(this.spec?.tone === "rank");
    for (const map of [...this.main, ...this.small]) {
      const view = geometry.tokensIn(map.window, map.extent, map.box);
      const left = tallyOf(tally, map.tiles, map.against, view, ordinary ? map.special : null);
      this.leftOut ||= left;
    }
    return tally;
  }

  /** Draw at the next frame; `maps`: them too, not only what is around and upon them. */
  private request(maps = true): void {
    this.outdated ||= maps;
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  private draw(): void {
    if (!this.spec || !this.window || !this.size.width) return;
    this.plan();
    const ratio = Math.min(devicePixelRatio || 1, 3);
    if (this.outdated) this.painter.draw(this.scene(ratio));
    this.outdated = false;
    const { overlay } = this;
    const [width, height] = [Math.round(this.size.width * ratio), Math.round(this.size.height * ratio)];
    if (overlay.width !== width) overlay.width = width;
    if (overlay.height !== height) overlay.height = height;
    const context = overlay.getContext("2d") as CanvasRenderingContext2D;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.size.width, this.size.height);
    this.drawAround(this.pen);
  }

  private scene(ratio: number): Scene {
    return {
      size: this.size,
      ratio,
      panels: [...this.main, ...this.small] satisfies Panel[],
      scale: this.scale,
      ground: this.theme.behind,
      nothing: this.theme.nothing,
    };
  }

  private drawAround(pen: Pen): void {
    const { chosen } = this.spec as Spec;
    this.main.forEach((map, i) => {
      drawFrame(pen, this.frameOf(map, i, chosen), this.gutters, this.theme, this.scale);
    });
    for (const map of this.small) drawSmall(pen, map.box, map.spec.title, mapBox(map), this.theme);
  }

  private frameOf(map: Shown, i: number, chosen: Spec["chosen"]): Frame {
    const { subject, against, title, queryLabels, keyLabels } = map.spec;
    return {
      box: map.box,
      window: map.window,
      extent: map.extent,
      title,
      queryLabels,
      keyLabels,
      sums: map.sums,
      pointed: this.pointed?.map === i ? this.pointed : null,
      chosen: i === 0 ? chosen : { query: null, key: null },
      weightAt: (query, key) => {
        const weight = this.cache.weightAt(subject, query, key);
        if (!against || weight === undefined) return weight;
        const other = this.cache.weightAt(against, query, key);
        return other === undefined ? undefined : weight - other;
      },
    };
  }

  private composed(around: boolean): HTMLCanvasElement {
    this.outdated = true;
    this.draw();
    const canvas = document.createElement("canvas");
    canvas.width = this.overlay.width;
    canvas.height = this.overlay.height;
    const context = canvas.getContext("2d") as CanvasRenderingContext2D;
    context.drawImage(this.canvasOf(), 0, 0); // in the same task as it was drawn: later, its pixels are gone
    if (around) context.drawImage(this.overlay, 0, 0);
    return canvas;
  }

  private beginning(view: { queries: Range; keys: Range }): Pair {
    const { query, key } = (this.spec as Spec).chosen;
    const inside = (token: number | null, [start, stop]: Range) =>
      token !== null && token >= start && token < stop ? token : Math.floor((start + stop - 1) / 2);
    return { query: inside(query, view.queries), key: inside(key, view.keys) };
  }

  private pointAt(map: number, pair: Pair | null): Pointed | null {
    clearTimeout(this.pointing);
    const same =
      this.pointed &&
      pair &&
      this.pointed.map === map &&
      this.pointed.query === pair.query &&
      this.pointed.key === pair.key;
    if (same) return this.pointed;
    this.asking.abort();
    this.pointed = pair && { map, ...pair, exact: this.known(map, pair), cell: this.cellAt(map, pair) };
    this.hears.points(this.pointed);
    this.request(false);
    if (this.pointed?.exact === undefined && this.pointed)
      this.pointing = setTimeout(() => void this.askWeight(), POINT);
    return this.pointed;
  }

  /** A weight or difference that is here; undefined: not yet; null: never. */
  private known(map: number, { query, key }: Pair): number | undefined | null {
    const { subject, against } = (this.main[map] as Shown).spec;
    const one = (of: Subject): number | undefined | null => {
      if (query >= of.extent.queries || key >= of.extent.keys) return null;
      const weight = this.cache.weightAt(of, query, key) ?? this.weights.get(`${nameOf(of)} ${query} ${key}`);
      return weight ?? (of.exact ? undefined : null);
    };
    const weight = one(subject);
    const less = against ? one(against) : 0;
    if (weight === null || less === null) return null;
    return weight === undefined || less === undefined ? undefined : weight - less;
  }

  private cellAt(map: number, { query, key }: Pair): Pointed["cell"] {
    const { tiles, against } = this.main[map] as Shown;
    const tile = tiles.findLast((one) => one.at(query, key) !== undefined);
    if (!tile) return null;
    const less = against ? against.findLast((one) => one.at(query, key) !== undefined)?.at(query, key) : 0;
    return less === undefined ? null : { ...tile.cellAt(query, key), weight: (tile.at(query, key) as number) - less };
  }

  private async askWeight(): Promise<void> {
    const at = this.pointed;
    if (!at) return;
    this.asking = new AbortController();
    const { signal } = this.asking;
    const { subject, against } = (this.main[at.map] as Shown).spec;
    try {
      await Promise.all([subject, ...(against ? [against] : [])].map((of) => this.fetchWeight(of, at, signal)));
    } catch (error) {
      if (!signal.aborted) this.repoint(at, null, error);
      return;
    }
    if (!signal.aborted) this.repoint(at, this.known(at.map, at));
  }

  private async fetchWeight(of: Subject, { query, key }: Pair, signal: AbortSignal): Promise<void> {
    const name = `${nameOf(of)} ${query} ${key}`;
    if (this.cache.weightAt(of, query, key) !== undefined || this.weights.has(name)) return;
    const { text, site, head } = of;
    const answer = await this.source.ask(
      "window",
      { text, site, head, queries: [query, query + 1], keys: [key, key + 1] },
      signal,
    );
    if (this.weights.size > 1000) this.weights.clear();
    this.weights.set(name, answer.weights.data[0] as number);
  }

  private repoint(at: Pointed, exact: number | undefined | null, error?: unknown): void {
    if (this.pointed !== at) return;
    if (error) this.tell(error);
    this.pointed = { ...at, exact };
    this.hears.points(this.pointed);
  }

  private sumAt(point: { x: number; y: number }): PointedSum | null {
    for (const [i, map] of this.main.entries()) {
      if (!map.sums) continue;
      const box = mapBox(map);
      const right = point.x - box.left - box.width;
      const below = point.y - box.top - box.height;
      const query = map.window.y + (point.y - box.top) / map.window.sy;
      const key = map.window.x + (point.x - box.left) / map.window.sx;
      const { sums } = map;
      if (right > 0 && right < this.gutters.right && below < 0)
        return sumOf(i, "queries", sums.queries, sums.rows, query);
      if (below > 0 && below < this.gutters.bottom && right < 0) return sumOf(i, "keys", sums.keys, sums.columns, key);
    }
    return null;
  }

  private forgetSums(): void {
    this.askingSums.abort();
    for (const map of this.main) map.sums = null;
  }

  private async askSums(): Promise<void> {
    this.askingSums.abort();
    this.askingSums = new AbortController();
    const { signal } = this.askingSums;
    await Promise.all(
      this.main.map(async (map) => {
        const { subject, against } = map.spec;
        if (!subject.exact || (against && !against.exact)) return;
        const view = geometry.tokensIn(map.window, map.extent, map.box);
        const queries = against ? clip(view.queries, against.extent.queries) : view.queries;
        const keys = against ? clip(view.keys, against.extent.keys) : view.keys;
        if (queries[0] < view.queries[0] || keys[0] < view.keys[0]) return; // the other map ends before this part
        if (map.sums && equal(map.sums.queries, queries) && equal(map.sums.keys, keys)) return;
        const ask = ({ text, site, head }: Subject) =>
          this.source.ask("margins", { text, site, head, queries, keys }, signal);
        const [sums, less] = await Promise.all([ask(subject), against ? ask(against) : null]);
        if (signal.aborted) return;
        const taken = (of: Float32Array, off: Float32Array | undefined) =>
          off ? of.map((value, i) => value - (off[i] as number)) : of;
        map.sums = {
          queries,
          keys,
          rows: taken(sums.rows.data, less?.rows.data),
          columns: taken(sums.columns.data, less?.columns.data),
        };
      }),
    ).catch((error: unknown) => {
      if (!signal.aborted) this.tell(error);
    });
    this.request(false);
  }
}

/** A map that is to be shown, in the place of one before it: where it is seen through the same window, in the same box. */
function shown(spec: MapSpec, before: readonly Shown[], place: number): Shown {
  const { extent } = spec.subject;
  const box = { left: 0, top: 0, width: 1, height: 1 };
  const same = before.find((map) => nameOf(map.spec.subject) === nameOf(spec.subject));
  return {
    spec,
    extent,
    box: same?.box ?? before[place]?.box ?? box,
    window: same?.window ?? { x: 0, y: 0, sx: 1, sy: 1 },
    level: 0,
    signature: "",
    tiles: [],
    against: null,
    wanted: [],
    special: spec.specialKeys && countsOf(spec.specialKeys),
    sums: same?.sums ?? null,
  };
}

function sumOf(
  map: number,
  side: "queries" | "keys",
  range: Range,
  values: Float32Array,
  at: number,
): PointedSum | null {
  if (at < range[0] || at >= range[1]) return null;
  const cell = cellOf(Math.floor(at), range, values.length);
  return { map, side, tokens: cellRange(cell, range, values.length), sum: values[cell] as number };
}

function cellSize({ queries, keys, rows, columns }: Tile): [number, number] {
  return [Math.ceil((queries[1] - queries[0]) / rows), Math.ceil((keys[1] - keys[0]) / columns)];
}

function coarsestLevel({ queries, keys }: geometry.Extent): number {
  return Math.max(Math.ceil(Math.log2(Math.max(queries, keys) / TILE)), 0);
}

const clip = ([start, stop]: Range, tokens: number): Range => [
  Math.min(start, tokens - 1),
  Math.max(Math.min(stop, tokens), 1),
];
const equal = (a: Range, b: Range) => a[0] === b[0] && a[1] === b[1];
