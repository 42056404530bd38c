/**
 * The canvases that a view of maps is drawn on, one over the other: the maps, and what is around and upon them. Drawn at the
 * next frame after something has changed, or at once into a file.
 */
import type { Scale } from "../../model/colour";
import { watchTheme } from "../../parts/theme";
import { type Chosen, drawFrame, drawSmall, type Frame, mapBox, type Theme } from "./axes";
import { CAPTION_HEIGHT, type Caption, drawCaption } from "./caption";
import { CanvasPen, type Pen, SvgPen } from "./pen";
import type { Pointed } from "./pointing";
import { WebglPainter } from "./renderer";
import type { Painter } from "./scene";
import type { Shown } from "./shown";
import { CanvasPainter } from "./software";
import { themeOf } from "./theme";
import type { Tile } from "./tiles";
import type { View } from "./view";

/** What is to be drawn. */
export interface Content {
  readonly view: View;
  readonly scale: Scale;
  readonly chosen: Chosen;
  readonly pointed: Pointed | null;
  readonly weightAt: (map: Shown, query: number, key: number) => number | undefined;
}

/** Pixels of a saved picture for one of the page. */
const SAVED = 2;

export class Surface {
  readonly pen: CanvasPen;
  private readonly painter: Painter;
  private readonly context: CanvasRenderingContext2D;
  private theme: Theme;
  private frame = 0;
  /** Whether the maps are to be drawn too, not only what is around and upon them. */
  private outdated = true;
  private readonly unhear: () => void;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly overlay: HTMLCanvasElement,
    /** What a frame shows, as it is drawn; null: nothing yet. */
    private readonly content: () => Content | null,
  ) {
    this.painter = WebglPainter.on(canvas, () => this.request()) ?? new CanvasPainter(canvas);
    this.context = overlay.getContext("2d") as CanvasRenderingContext2D;
    this.pen = new CanvasPen(this.context);
    const page = overlay.parentElement as HTMLElement;
    this.theme = themeOf(page);
    this.unhear = watchTheme(overlay, () => {
      this.theme = themeOf(page);
      this.request();
    });
  }

  /** Whether maps are drawn without the graphics card. */
  get plain(): boolean {
    return this.painter instanceof CanvasPainter;
  }

  /** Draw at the next frame; `maps`: them too. */
  request(maps = true): void {
    this.outdated ||= maps;
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw(this.content());
    });
  }

  /** Let go of a tile. */
  drop(tile: Tile): void {
    this.painter.drop(tile);
  }

  /** All that is drawn, with what it is of above it. */
  async png(caption: Caption): Promise<Blob> {
    const content = this.content() as Content;
    const maps = this.maps(content);
    const { canvas, context } = blank(maps.width, maps.height + CAPTION_HEIGHT * SAVED);
    context.fillStyle = this.theme.ground;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(maps, 0, CAPTION_HEIGHT * SAVED);
    context.scale(SAVED, SAVED);
    this.drawSaved(new CanvasPen(context), content, caption);
    return await new Promise((done, failed) => {
      canvas.toBlob(
        (blob) => (blob ? done(blob) : failed(new Error("The picture is too large to be saved."))),
        "image/png",
      );
    });
  }

  /** The same with sharp letters and lines: the maps are a picture in it. */
  svg(caption: Caption): string {
    const content = this.content() as Content;
    const picture = this.maps(content).toDataURL("image/png");
    const pen = new SvgPen(this.pen);
    this.drawSaved(pen, content, caption);
    const { width, height } = content.view.size;
    return pen.document(width, height + CAPTION_HEIGHT, this.theme.ground, picture, CAPTION_HEIGHT);
  }

  destroy(): void {
    cancelAnimationFrame(this.frame);
    this.unhear();
    this.painter.destroy();
  }

  private draw(content: Content | null): void {
    if (!content) return;
    const { overlay, context } = this;
    const { size } = content.view;
    const ratio = Math.min(devicePixelRatio || 1, 3);
    if (this.outdated) this.drawMaps(content, ratio);
    this.outdated = false;
    const [width, height] = [Math.round(size.width * ratio), Math.round(size.height * ratio)];
    if (overlay.width !== width) overlay.width = width;
    if (overlay.height !== height) overlay.height = height;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, size.width, size.height);
    this.drawAround(this.pen, content);
  }

  private drawAround(pen: Pen, content: Content): void {
    const { main, small, gutters } = content.view;
    main.forEach((map, i) => {
      drawFrame(pen, frameOf(map, i, content), gutters, this.theme, content.scale);
    });
    for (const map of small) drawSmall(pen, map.box, map.spec.title, mapBox(map), this.theme);
  }

  private drawSaved(pen: Pen, content: Content, caption: Caption): void {
    drawCaption(pen, caption, content.scale, content.view.size.width, this.theme);
    pen.lowered(CAPTION_HEIGHT, () => this.drawAround(pen, content));
  }

  private drawMaps({ view, scale }: Content, ratio: number): void {
    const { behind, nothing } = this.theme;
    this.painter.draw({ size: view.size, ratio, panels: view.maps, scale, ground: behind, nothing });
  }

  /** A copy of the maps, with nothing around them, as finely as they are saved. */
  private maps(content: Content): HTMLCanvasElement {
    this.drawMaps(content, SAVED);
    const { canvas, context } = blank(this.canvas.width, this.canvas.height);
    context.drawImage(this.canvas, 0, 0); // in the same task as it was drawn: later, its pixels are gone
    this.request(); // as finely as the screen is
    return canvas;
  }
}

function blank(width: number, height: number): { canvas: HTMLCanvasElement; context: CanvasRenderingContext2D } {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return { canvas, context: canvas.getContext("2d") as CanvasRenderingContext2D };
}

function frameOf(map: Shown, i: number, { chosen, pointed, weightAt }: Content): Frame {
  const { title, queryLabels, keyLabels } = map.spec;
  return {
    box: map.box,
    window: map.window,
    extent: map.extent,
    title,
    queryLabels,
    keyLabels,
    sums: map.sums,
    pointed: pointed?.map === i ? pointed : null,
    chosen: i === 0 ? chosen : { query: null, key: null },
    weightAt: (query, key) => weightAt(map, query, key),
  };
}
