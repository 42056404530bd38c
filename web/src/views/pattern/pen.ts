/** Text, lines and boxes on a canvas or in an SVG: what is around a map is drawn by the same lines of code on both. */
import type { Box } from "./geometry";

export interface TextStyle {
  colour: string;
  anchor?: "start" | "middle" | "end";
  /** Upwards, from the foot of the letters. */
  upright?: boolean;
  bold?: boolean;
  /** Pixels. */
  size?: number;
  /** Painted behind the letters. */
  behind?: string;
}

export interface Pen {
  /** `y` is the middle of the letters; of upright ones, `x` is. */
  text(text: string, x: number, y: number, style: TextStyle): void;
  line(x1: number, y1: number, x2: number, y2: number, colour: string, width?: number): void;
  fill(x: number, y: number, width: number, height: number, colour: string): void;
  frame(x: number, y: number, width: number, height: number, colour: string, thick?: number): void;
  /** What is drawn in between is seen only inside a box. */
  clip(box: Box, draw: () => void): void;
  /** What is drawn in between is lower by so many pixels. */
  lowered(by: number, draw: () => void): void;
  width(text: string, bold?: boolean): number;
}

export const FONT_SIZE = 11.5;
const FAMILY = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';

const font = (size: number, bold = false) => `${bold ? 650 : 400} ${size}px ${FAMILY}`;

export class CanvasPen implements Pen {
  private readonly widths = new Map<string, number>();

  constructor(private readonly context: CanvasRenderingContext2D) {}

  text(text: string, x: number, y: number, style: TextStyle): void {
    const { context } = this;
    const { colour, anchor = "start", upright = false, bold = false, size = FONT_SIZE, behind } = style;
    context.font = font(size, bold);
    context.textAlign = anchor === "middle" ? "center" : anchor;
    context.textBaseline = "middle";
    if (upright) {
      context.save();
      context.translate(x, y);
      context.rotate(-Math.PI / 2);
      x = y = 0;
    }
    if (behind) {
      const width = this.width(text, bold);
      const left = anchor === "start" ? x : anchor === "end" ? x - width : x - width / 2;
      context.fillStyle = behind;
      context.fillRect(left - 3, y - size / 2 - 2, width + 6, size + 4);
    }
    context.fillStyle = colour;
    context.fillText(text, x, y);
    if (upright) context.restore();
  }

  line(x1: number, y1: number, x2: number, y2: number, colour: string, width = 1): void {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
  }

  fill(x: number, y: number, width: number, height: number, colour: string): void {
    this.context.fillStyle = colour;
    this.context.fillRect(x, y, width, height);
  }

  frame(x: number, y: number, width: number, height: number, colour: string, thick = 1): void {
    this.context.strokeStyle = colour;
    this.context.lineWidth = thick;
    this.context.strokeRect(x, y, width, height);
  }

  clip({ left, top, width, height }: Box, draw: () => void): void {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    draw();
    context.restore();
  }

  lowered(by: number, draw: () => void): void {
    this.context.save();
    this.context.translate(0, by);
    draw();
    this.context.restore();
  }

  width(text: string, bold = false): number {
    const name = bold ? `*${text}` : text;
    const known = this.widths.get(name);
    if (known !== undefined) return known;
    this.context.font = font(FONT_SIZE, bold);
    const { width } = this.context.measureText(text);
    if (this.widths.size > 4096) this.widths.clear();
    this.widths.set(name, width);
    return width;
  }
}

/** `measured` tells how wide text is: an SVG by itself does not know. */
export class SvgPen implements Pen {
  private readonly parts: string[] = [];
  private clips = 0;

  constructor(private readonly measured: Pen) {}

  /** The drawing; `picture` (a data URL) lies under it, from `top` on. */
  document(width: number, height: number, ground: string, picture: string, top: number): string {
    return [
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${escaped(FAMILY)}">`,
      `<rect width="100%" height="100%" fill="${ground}"/>`,
      `<image href="${picture}" y="${top}" width="${width}" height="${height - top}" style="image-rendering:pixelated"/>`,
      ...this.parts,
      "</svg>",
    ].join("\n");
  }

  text(text: string, x: number, y: number, style: TextStyle): void {
    const { colour, anchor = "start", upright = false, bold = false, size = FONT_SIZE, behind } = style;
    const turn = upright ? ` transform="translate(${near(x)} ${near(y)}) rotate(-90)"` : "";
    const at = upright ? 'x="0" y="0"' : `x="${near(x)}" y="${near(y)}"`;
    const halo = behind ? ` stroke="${behind}" stroke-width="3" paint-order="stroke"` : "";
    this.parts.push(
      `<text ${at}${turn} fill="${colour}" font-size="${size}"${bold ? ' font-weight="650"' : ""} text-anchor="${anchor}" dominant-baseline="central"${halo}>${escaped(text)}</text>`,
    );
  }

  line(x1: number, y1: number, x2: number, y2: number, colour: string, width = 1): void {
    this.parts.push(
      `<line x1="${near(x1)}" y1="${near(y1)}" x2="${near(x2)}" y2="${near(y2)}" stroke="${colour}" stroke-width="${width}"/>`,
    );
  }

  fill(x: number, y: number, width: number, height: number, colour: string): void {
    this.parts.push(
      `<rect x="${near(x)}" y="${near(y)}" width="${near(width)}" height="${near(height)}" fill="${colour}"/>`,
    );
  }

  frame(x: number, y: number, width: number, height: number, colour: string, thick = 1): void {
    this.parts.push(
      `<rect x="${near(x)}" y="${near(y)}" width="${near(width)}" height="${near(height)}" fill="none" stroke="${colour}" stroke-width="${thick}"/>`,
    );
  }

  clip({ left, top, width, height }: Box, draw: () => void): void {
    const id = `clip-${this.clips++}`;
    this.parts.push(
      `<clipPath id="${id}"><rect x="${near(left)}" y="${near(top)}" width="${near(width)}" height="${near(height)}"/></clipPath>`,
    );
    this.parts.push(`<g clip-path="url(#${id})">`);
    draw();
    this.parts.push("</g>");
  }

  lowered(by: number, draw: () => void): void {
    this.parts.push(`<g transform="translate(0 ${near(by)})">`);
    draw();
    this.parts.push("</g>");
  }

  width(text: string, bold = false): number {
    return this.measured.width(text, bold);
  }
}

const near = (value: number) => String(Math.round(value * 100) / 100);

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}
