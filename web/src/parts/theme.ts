/** Colours of the page for what is no element: pixels of a canvas, a saved drawing. */
import type { Colour } from "../model/colour";

/** What a style sheet's colour is on an element, in its theme. */
export function rgbOf(element: Element, colour: string): Colour {
  const probe = document.createElement("span");
  probe.style.color = colour;
  element.append(probe);
  const [red, green, blue] = (getComputedStyle(probe).color.match(/[\d.]+/g) ?? []).map(Number);
  probe.remove();
  return [red ?? 0, green ?? 0, blue ?? 0];
}

/** A colour as attributes of an SVG have it. */
export function cssOf(colour: Colour): string {
  return `rgb(${colour.join(",")})`;
}

/** Call back when the page turns light or dark, until the returned function is called. */
export function watchTheme(element: Element, changed: () => void): () => void {
  const observer = new MutationObserver(changed);
  const root = element.closest(".saccade");
  if (root) observer.observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", changed);
  return () => {
    observer.disconnect();
    dark.removeEventListener("change", changed);
  };
}
