/**
 * Part of the page as one drawing, the way it is laid out: boxes, texts and drawings, each where it is. A picture of the
 * page made by the browser itself (a foreignObject) would need all styles in it and opens in browsers only.
 */
import { svgOf } from "../../parts/save";

const SPACE = "http://www.w3.org/2000/svg";
const MARGIN = 16;
/** Not part of a picture: what is only read aloud, and what one operates. */
const LEFT_OUT = ".unseen, [data-unsaved]";

/** `root` as SVG, on the page's ground. */
export function capture(root: HTMLElement): string {
  const { left, top, width, height } = root.getBoundingClientRect();
  const size = { width: Math.ceil(width) + 2 * MARGIN, height: Math.ceil(height) + 2 * MARGIN };
  const svg = make("svg", { xmlns: SPACE, ...size, viewBox: `0 0 ${size.width} ${size.height}` });
  const page = root.closest(".saccade") ?? root;
  svg.append(make("rect", { ...size, ...paint("fill", getComputedStyle(page).backgroundColor) }));
  const all = make("g", { transform: `translate(${round(MARGIN - left)} ${round(MARGIN - top)})` });
  svg.append(all);
  walk(root, all);
  return new XMLSerializer().serializeToString(svg);
}

function walk(element: Element, into: Element): void {
  if (element.matches(LEFT_OUT)) return;
  const style = getComputedStyle(element);
  if (style.display === "none" || style.visibility === "hidden") return;
  if (element instanceof SVGSVGElement) {
    into.append(drawing(element));
    return;
  }
  into.append(...box(element, style));
  if (element.localName === "mfrac") into.append(...fractionBar(element, style));
  for (const child of element.childNodes) {
    if (child instanceof Element) walk(child, into);
    else if (child instanceof Text) into.append(...lines(child, style));
  }
}

/** An element's ground and border. */
function box(element: Element, style: CSSStyleDeclaration): Element[] {
  const { left, top, width, height } = element.getBoundingClientRect();
  const made: Element[] = [];
  const corner = style.borderTopLeftRadius;
  const radius = corner.endsWith("%") ? Math.min(width, height) / 2 : Number.parseFloat(corner) || 0;
  const ground = paint("fill", style.backgroundColor);
  const sides = (["Top", "Right", "Bottom", "Left"] as const).map((side) => ({
    width: style[`border${side}Style`] === "none" ? 0 : Number.parseFloat(style[`border${side}Width`]),
    colour: style[`border${side}Color`],
  }));
  const same = sides.every((side) => side.width === sides[0]?.width);
  const border =
    same && sides[0] && sides[0].width > 0
      ? { ...paint("stroke", sides[0].colour), "stroke-width": sides[0].width }
      : {};
  if (ground["fill-opacity"] || "stroke" in border) {
    made.push(
      make("rect", { ...place(left, top, width, height), rx: Math.min(radius, height / 2), ...ground, ...border }),
    );
  }
  if (same) return made;
  const edges = [
    [left, top, width, sides[0]?.width ?? 0],
    [left + width - (sides[1]?.width ?? 0), top, sides[1]?.width ?? 0, height],
    [left, top + height - (sides[2]?.width ?? 0), width, sides[2]?.width ?? 0],
    [left, top, sides[3]?.width ?? 0, height],
  ] as const;
  edges.forEach((edge, i) => {
    if (edge[2] > 0 && edge[3] > 0)
      made.push(make("rect", { ...place(...edge), ...paint("fill", sides[i]?.colour ?? "") }));
  });
  return made;
}

/** A text as it is broken into lines. */
function lines(text: Text, style: CSSStyleDeclaration): Element[] {
  const found: { words: string; left: number; right: number; top: number; height: number }[] = [];
  const range = document.createRange();
  for (const { 0: word, index } of text.data.matchAll(/\S+/g)) {
    range.setStart(text, index);
    range.setEnd(text, index + word.length);
    const rectangle = range.getClientRects()[0];
    if (!rectangle || rectangle.width === 0) continue;
    const { left, right, top, height } = rectangle;
    const last = found.at(-1);
    if (last && Math.abs(last.top - top) < 2) Object.assign(last, { words: `${last.words} ${word}`, right });
    else found.push({ words: word, left, right, top, height });
  }
  const font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  return found.map(({ words, left, right, top, height }) => {
    const line = make("text", {
      x: round(left),
      y: round(top + height * ascent(font)),
      textLength: round(right - left),
      lengthAdjust: "spacingAndGlyphs",
      "font-family": style.fontFamily,
      "font-size": style.fontSize,
      "font-weight": style.fontWeight,
      "font-style": style.fontStyle,
      ...(style.textDecorationLine === "none" ? {} : { "text-decoration": style.textDecorationLine }),
      ...paint("fill", style.color),
    });
    line.textContent = words;
    return line;
  });
}

/** The line of a fraction, which is no element. */
function fractionBar(fraction: Element, style: CSSStyleDeclaration): Element[] {
  const [above, below] = Array.from(fraction.children, (part) => part.getBoundingClientRect());
  if (!above || !below) return [];
  const { left, width } = fraction.getBoundingClientRect();
  return [
    make("rect", { ...place(left, (above.bottom + below.top) / 2 - 0.5, width, 1), ...paint("fill", style.color) }),
  ];
}

/** A drawing inside the page, without the ground that one by itself has. */
function drawing(svg: SVGSVGElement): Element {
  const { left, top, width, height } = svg.getBoundingClientRect();
  const copy = new DOMParser().parseFromString(svgOf(svg), "image/svg+xml").documentElement;
  copy.firstElementChild?.remove();
  for (const [name, value] of Object.entries(place(left, top, width, height))) copy.setAttribute(name, String(value));
  return document.importNode(copy, true);
}

function place(x: number, y: number, width: number, height: number): Record<string, number> {
  return { x: round(x), y: round(y), width: round(width), height: round(height) };
}

function make(name: string, attributes: Record<string, string | number>): Element {
  const made = document.createElementNS(SPACE, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, String(value));
  return made;
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}

const pixel = () => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  return canvas.getContext("2d", { willReadFrequently: true }) as CanvasRenderingContext2D;
};
let scratch: CanvasRenderingContext2D | undefined;
const colours = new Map<string, readonly [string, number]>();
const ascents = new Map<string, number>();

/** Any CSS colour as every reader of SVG knows it: #rrggbb and an opacity. */
function paint(what: "fill" | "stroke", colour: string): Record<string, string | number> {
  scratch ??= pixel();
  let known = colours.get(colour);
  if (!known) {
    scratch.clearRect(0, 0, 1, 1);
    scratch.fillStyle = colour;
    scratch.fillRect(0, 0, 1, 1);
    const [r = 0, g = 0, b = 0, a = 0] = scratch.getImageData(0, 0, 1, 1).data;
    known = [`#${[r, g, b].map((part) => part.toString(16).padStart(2, "0")).join("")}`, round(a / 255)];
    colours.set(colour, known);
  }
  return { [what]: known[0], [`${what}-opacity`]: known[1] };
}

/** The share of a line's height that is above its baseline. */
function ascent(font: string): number {
  scratch ??= pixel();
  let known = ascents.get(font);
  if (known === undefined) {
    scratch.font = font;
    const { fontBoundingBoxAscent: above, fontBoundingBoxDescent: below } = scratch.measureText("x");
    known = above / (above + below);
    ascents.set(font, known);
  }
  return known;
}
