/** Views as files: a drawing as SVG or PNG, numbers as CSV, anything as a download. */

import type { TextInfo } from "../source/contract";

/** What of an element's style a saved drawing needs: where it is shown there is no page around it. */
const STYLES = [
  "fill",
  "fill-opacity",
  "stroke",
  "stroke-width",
  "stroke-opacity",
  "stroke-dasharray",
  "stroke-linecap",
  "opacity",
  "font-family",
  "font-size",
  "font-weight",
  "font-style",
  "text-anchor",
  "dominant-baseline",
  "visibility",
  "display",
] as const;

/** A drawing by itself: the same on any ground, its colours written into it. `ground` is painted behind it. */
export function svgOf(drawing: SVGSVGElement): string {
  const copy = drawing.cloneNode(true) as SVGSVGElement;
  const originals = [drawing, ...drawing.querySelectorAll<SVGElement>("*")];
  const copies = [copy, ...copy.querySelectorAll<SVGElement>("*")];
  originals.forEach((original, i) => {
    const style = getComputedStyle(original);
    const made = copies[i] as SVGElement;
    // As attributes: a style in the drawing's text is what the page's own policy forbids.
    for (const name of STYLES) made.setAttribute(name, style.getPropertyValue(name));
    made.removeAttribute("style");
    made.removeAttribute("class");
  });
  const { width, height } = drawing.getBoundingClientRect();
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", String(Math.ceil(width)));
  copy.setAttribute("height", String(Math.ceil(height)));
  if (!copy.hasAttribute("viewBox")) copy.setAttribute("viewBox", `0 0 ${Math.ceil(width)} ${Math.ceil(height)}`);
  const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const [x, y] = (copy.getAttribute("viewBox") ?? "0 0").split(/[ ,]+/);
  for (const [name, value] of Object.entries({
    x: x ?? "0",
    y: y ?? "0",
    width: "100%",
    height: "100%",
    fill: groundOf(drawing),
  })) {
    ground.setAttribute(name, value);
  }
  copy.prepend(ground);
  return new XMLSerializer().serializeToString(copy);
}

/** A drawing as pixels, two for each of the screen's. */
export async function pngOf(svg: string): Promise<Blob> {
  const picture = new Image();
  const url = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  try {
    await new Promise((done, failed) => {
      picture.onload = done;
      picture.onerror = () => failed(new Error("The drawing could not be turned into pixels."));
      picture.src = url;
    });
    const canvas = document.createElement("canvas");
    canvas.width = picture.naturalWidth * 2;
    canvas.height = picture.naturalHeight * 2;
    (canvas.getContext("2d") as CanvasRenderingContext2D).drawImage(picture, 0, 0, canvas.width, canvas.height);
    return await new Promise((done, failed) => {
      canvas.toBlob(
        (blob) => (blob ? done(blob) : failed(new Error("The picture is too large to be saved."))),
        "image/png",
      );
    });
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Rows as CSV (RFC 4180). A cell that a spreadsheet could take for a formula is text there: a quote stands before it. */
export function csvOf(columns: readonly string[], rows: Iterable<readonly (string | number)[]>): string {
  const lines = [columns.join(",")];
  for (const row of rows) lines.push(row.map(cell).join(","));
  return `${lines.join("\n")}\n`;
}

function cell(value: string | number): string {
  if (typeof value === "number") return Number.isFinite(value) ? String(value) : "";
  const harmless = /^[=+\-@\t\r]/.test(value) && value.length > 1 ? `'${value}` : value;
  return /[",\n\r]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
}

/** What a file says of which text it is: the text, or its name where that is not known or longer than `longest`. */
export function textIn({ text, name }: Pick<TextInfo, "text" | "name">, longest = Number.POSITIVE_INFINITY): string {
  return text !== null && text.length <= longest ? text : name;
}

/** Hand a file to who reads the page. */
export function download(name: string, content: Blob | string, type = "text/plain;charset=utf-8"): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function groundOf(element: Element): string {
  const root = element.closest(".saccade");
  return root ? getComputedStyle(root).backgroundColor : "white";
}
