/** The page as a notebook's widget. */
import { mount, unmount } from "svelte";
import App from "./App.svelte";
import type { Link } from "./look.svelte";
import { type WidgetModel, WidgetSource } from "./source/widget";

/** Puts a page into an output cell; called by anywidget, once for each display. Returns what takes it away again. */
export function render({ model, el }: { model: WidgetModel; el: HTMLElement }): () => void {
  const source = new WidgetSource(model);
  const frame = el.appendChild(document.createElement("div"));
  frame.className = "saccade-frame";
  frame.addEventListener("focusin", keepKeys);
  const measure = () => Object.assign(frame.style, { height: `${Number(model.get("height"))}px` });
  measure();
  model.on("change:height", measure);
  const app = mount(App, { target: frame, props: { source, link: trait(model), linked: false, around } });
  return () => {
    model.off("change:height", measure);
    void unmount(app);
    source.close();
    frame.remove();
  };
}

/** JupyterLab takes keys before a page hears of them ("b": a new cell), unless the very element they go to says so. */
function keepKeys({ target }: FocusEvent): void {
  (target as HTMLElement).dataset.lmSuppressShortcuts = "true";
}

/** The link is the widget's trait `view`, which Python reads and sets, and other displays of the widget. */
function trait(model: WidgetModel): Link {
  let known = ""; // to this display, which hears of its own changes as well
  const read = () => String(model.get("view") ?? "");
  return {
    read: () => {
      known = read();
      return known;
    },
    write: (link) => {
      known = link;
      model.set("view", link);
      model.save_changes();
    },
    listen: (changed) => {
      const heard = () => {
        if (read() !== known) changed();
      };
      model.on("change:view", heard);
      return () => model.off("change:view", heard);
    },
  };
}

/** Calls back with whether the notebook is dark: by the ground it paints, since each kind has its own way of saying so. */
function around(told: (dark: boolean) => void): () => void {
  const tell = () => told(isDark(getComputedStyle(document.body).backgroundColor));
  const observer = new MutationObserver(tell);
  for (const element of [document.documentElement, document.body]) observer.observe(element, { attributes: true });
  tell();
  return () => observer.disconnect();
}

/** Whether a colour, "rgb(17, 17, 17)", is a dark ground; one that is not painted is not. */
export function isDark(colour: string): boolean {
  const [red = 255, green = 255, blue = 255, opacity = 1] = (colour.match(/[\d.]+/g) ?? []).map(Number);
  return opacity > 0 && 0.299 * red + 0.587 * green + 0.114 * blue < 128;
}
