/** The page's colours as a canvas takes them: the style sheet's are made of light-dark(), which only elements understand. */
import type { Colour } from "../../model/colour";
import type { Theme } from "./axes";

export function themeOf(element: HTMLElement): Theme {
  const probe = element.ownerDocument.createElement("span");
  element.append(probe);
  const read = (name: string): string => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const theme: Theme = {
    ink: read("--ink"),
    muted: read("--muted"),
    line: read("--strong-line"),
    ground: read("--ground"),
    query: read("--query"),
    key: read("--key"),
    querySoft: soft(read("--query")),
    keySoft: soft(read("--key")),
    nothing: bytes(read("--surface")),
    behind: bytes(read("--ground")),
  };
  probe.remove();
  return theme;
}

function soft(colour: string): string {
  return `rgb(${bytes(colour).join(" ")} / 0.55)`;
}

function bytes(colour: string): Colour {
  const [red = 0, green = 0, blue = 0] = (colour.match(/[\d.]+/g) ?? []).map(Number);
  return [red, green, blue];
}
