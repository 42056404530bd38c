/**
 * The maps on the screen, moved, drawn and fed with tiles. What happens in every frame happens here and in what is used here,
 * outside of Svelte; the component says what is to be shown and hears what came of it.
 *
 * A change of the view is drawn at the next frame from what is there. When the view has rested for a moment, what is
 * missing is asked for; when nothing is missing, the scale is made for what is in view, and the sums at the sides are asked for.
 */

import type { Rectangle } from "../../look.svelte";
import { type PaletteName, type Scale, scaleOf, Tally, type Tone } from "../../model/colour";
import type { Range, Source } from "../../source/contract";
import type { Chosen, Pair } from "./axes";
import type { Caption } from "./caption";
import { type Box, type Point, pairAt } from "./geometry";
import { type Pointed, Pointing } from "./pointing";
import { chooseTiles, type Shown, tallyInView, viewOf, weightAt } from "./shown";
import type { MapSpec } from "./specs";
import { type PointedSum, SumsLoader, sumAt } from "./sums";
import { type Content, Surface } from "./surface";
import { nameOf, type Tile, TileCache, TileLoader } from "./tiles";
import { View } from "./view";

export interface Spec {
  /** One, or two beside one another. */
  readonly maps: readonly MapSpec[];
  readonly small: readonly MapSpec[];
  readonly tone: Tone;
  readonly palette: PaletteName;
  readonly chosen: Chosen;
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
  readonly small: readonly Box[];
  readonly height: number;
  /** Whether all of the map is in view, and so cannot be moved. */
  readonly whole: boolean;
}

export interface Hears {
  /** The view rests here. */
  rested(rectangle: Rectangle | null): void;
  shows(state: State): void;
  /** All that is in view is there. */
  settled(): void;
  points(at: Pointed | PointedSum | null): void;
}

// Milliseconds of rest until tiles are asked for, the link is written, and the sums are asked for; between two scales, while
// tiles come.
const REST = 60;
const LINK = 150;
const SETTLE = 180;
const RESCALE = 200;
const BYTES = 96 << 20;

export class Engine {
  private readonly surface: Surface;
  private readonly view: View;
  private readonly cache: TileCache;
  private readonly loader: TileLoader;
  private readonly sums: SumsLoader;
  private readonly pointing: Pointing;
  private spec: Spec | null = null;
  private scale: Scale = scaleOf(new Tally(), "linear", "saccade", false);
  private leftOut = false;
  private rest: ReturnType<typeof setTimeout> | undefined;
  private settling: ReturnType<typeof setTimeout> | undefined;
  private telling: ReturnType<typeof setTimeout> | undefined;
  private resting = true;
  private scaled = Number.NEGATIVE_INFINITY;

  constructor(
    canvas: HTMLCanvasElement,
    overlay: HTMLCanvasElement,
    source: Source,
    private readonly hears: Hears,
  ) {
    this.surface = new Surface(canvas, overlay, () => this.content());
    this.view = new View(this.surface.pen);
    this.cache = new TileCache(BYTES, (tile) => this.surface.drop(tile));
    this.loader = new TileLoader(
      (key, signal) => source.ask("tile", key, signal),
      this.cache,
      () => this.came(),
    );
    this.sums = new SumsLoader(source);
    this.pointing = new Pointing(() => this.view.main, this.cache, source, {
      moves: (at) => {
        hears.points(at);
        this.surface.request(false);
      },
      learns: (at, error) => {
        if (error) this.tell(error);
        hears.points(at);
      },
    });
  }

  /** Whether maps are drawn without the graphics card. */
  get plain(): boolean {
    return this.surface.plain;
  }

  /** Show these maps; the part in view stays if they are as long as those before. */
  show(spec: Spec): void {
    const others = namesOf(spec) !== namesOf(this.spec);
    this.spec = spec;
    if (this.pointing.at) this.pointing.point(0, null);
    this.view.show(spec.maps, spec.small);
    if (others) {
      this.sums.stop();
      for (const map of this.view.main) map.sums = null;
    }
    this.rescale();
    this.moved();
  }

  /** Tokens that are chosen: the only part of a spec that changes often. */
  choose(chosen: Chosen): void {
    if (!this.spec) return;
    this.spec = { ...this.spec, chosen };
    this.surface.request(false);
  }

  /** This is in view. */
  open(rectangle: Rectangle | null): void {
    if (this.view.open(rectangle)) this.moved();
  }

  /** The room that there is, in pixels: the maps' height is up to them. */
  resize(width: number, height: number): void {
    if (this.view.resize(width, height)) this.moved();
  }

  /** Closer or farther, around a point of the canvas or the middle. False if that changed nothing. */
  zoom(factor: number, point?: Point): boolean {
    return this.movedByHand(this.view.zoom(factor, point));
  }

  /** Closer or farther, around the pair that is pointed at. */
  zoomAtPointed(factor: number): boolean {
    const { at } = this.pointing;
    const map = at && this.view.main[at.map];
    return this.zoom(factor, map ? middleOf(map, at) : undefined);
  }

  pan(right: number, down: number): boolean {
    return this.movedByHand(this.view.pan(right, down));
  }

  /** To the beginning or the end. */
  jump(end: boolean): void {
    const far = end ? 1e12 : -1e12;
    this.pan(far, far);
  }

  /** Look at the part between two points of the canvas. */
  enclose(a: Point, b: Point): void {
    this.movedByHand(this.view.enclose(a, b));
  }

  /** Point at a place of the canvas; null: nowhere. */
  point(at: Point | null): Pointed | PointedSum | null {
    const { main, gutters } = this.view;
    const map = at && this.view.mapAt(at);
    const pair = map && pairAt(map, at);
    if (map && pair) return this.pointing.point(main.indexOf(map), pair);
    this.pointing.point(0, null);
    const sum = at && sumAt(main, gutters, at);
    if (sum) this.hears.points(sum);
    return sum;
  }

  /** Move the pointed pair by tokens; the view follows. From nowhere, it begins at what is chosen or in the middle. */
  step(right: number, down: number, one: boolean): void {
    const pair = this.spec && this.view.stepped(this.pointing.at, this.spec.chosen, right, down, one);
    if (!pair) return;
    this.movedByHand(this.view.follow(pair));
    this.pointing.point(0, pair);
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
    const it = this.view.main[map];
    return it ? { ...it, view: viewOf(it) } : null;
  }

  /** All that is drawn, as a picture. */
  png(caption: Caption): Promise<Blob> {
    return this.surface.png(caption);
  }

  svg(caption: Caption): string {
    return this.surface.svg(caption);
  }

  destroy(): void {
    for (const timer of [this.rest, this.settling, this.telling]) clearTimeout(timer);
    this.pointing.stop();
    this.loader.stop();
    this.sums.stop();
    this.cache.clear();
    this.surface.destroy();
  }

  private movedByHand(changed: boolean): boolean {
    if (!changed) return false;
    this.moved();
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.hears.rested(this.view.rectangle), LINK);
    return true;
  }

  private moved(): void {
    this.resting = false;
    clearTimeout(this.settling);
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.rests(), REST);
    this.surface.request();
  }

  private rests(): void {
    this.resting = true;
    this.plan();
    this.loader.want(this.view.maps.flatMap(({ wanted }) => wanted));
    this.came();
  }

  /** A tile came, or none is missing. */
  private came(): void {
    for (const map of this.view.maps) map.signature = "";
    this.surface.request();
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
    if (missing === 0 && this.view.main.length) this.settling = setTimeout(() => this.settle(), SETTLE);
  }

  private settle(): void {
    void this.sums
      .load(this.view.main)
      .catch((error: unknown) => this.tell(error))
      .then(() => this.surface.request(false));
    this.hears.settled();
  }

  private tell(error: unknown = this.loader.error): void {
    const main = this.view.main[0];
    if (!main) return;
    const [coarsest] = main.tiles;
    this.hears.shows({
      scale: this.scale,
      leftOut: this.leftOut,
      view: viewOf(main),
      cell: coarsest ? cellSize(coarsest) : [1, 1],
      missing: this.loader.missing,
      error,
      reduce: coarsest?.reduce ?? null,
      exact: main.tiles.length > 0 && main.tiles.every(({ exact }) => exact),
      small: this.view.small.map(({ box }) => box),
      height: this.view.size.height,
      whole: this.view.rectangle === null,
    });
  }

  /** Where each map is, and from which tiles it is drawn. */
  private plan(): void {
    if (!this.view.spread()) return;
    for (const map of this.view.maps) chooseTiles(map, this.cache);
  }

  /** Make the scale for what is in view. */
  private rescale(): void {
    if (!this.spec) return;
    this.plan();
    const { tone, palette, maps } = this.spec;
    const { tally, leftOut } = tallyInView(this.view.maps, tone === "rank");
    this.leftOut = leftOut;
    const signed = maps.some(({ against }) => against);
    if (tally.largest > 0 || this.loader.missing === 0) this.scale = scaleOf(tally, tone, palette, signed);
    this.surface.request();
  }

  private content(): Content | null {
    const { spec, view, scale, cache } = this;
    if (!spec || !view.window || !view.size.width) return null;
    this.plan();
    return {
      view,
      scale,
      chosen: spec.chosen,
      pointed: this.pointing.at,
      weightAt: (map, query, key) => weightAt(map, cache, query, key),
    };
  }
}

function namesOf(spec: Spec | null): string {
  return (spec?.maps ?? [])
    .map(({ subject, against }) => `${nameOf(subject)} - ${against ? nameOf(against) : ""}`)
    .join();
}

/** Where a pair's middle is on the canvas. */
function middleOf({ box, window }: Shown, { query, key }: Pair): Point {
  return {
    x: box.left + (key + 0.5 - window.x) * window.sx,
    y: box.top + (query + 0.5 - window.y) * window.sy,
  };
}

function cellSize({ queries, keys, rows, columns }: Tile): [number, number] {
  return [Math.ceil((queries[1] - queries[0]) / rows), Math.ceil((keys[1] - keys[0]) / columns)];
}
