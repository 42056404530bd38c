/** One file for saved pages and notebooks. A saved page has its data in itself, and starts as soon as they are unpacked. */
import "./notebook.css"; // first: the rules of components follow
import { mount } from "svelte";
import App from "./App.svelte";
import { addressBar } from "./look.svelte";
import { packed } from "./source/packed";
import { render } from "./widget";
import "./style.css";

/** What anywidget asks of a notebook's widget. */
export default { render };

declare global {
  /** What `src/saccade/explorer/standalone.html` unpacks before this script runs: a parcel of files, and the first view. */
  var saccadeSaved: { files: ArrayBuffer; look: string } | undefined;
}

const saved = globalThis.saccadeSaved;
if (saved) {
  if (!location.hash && saved.look) history.replaceState(null, "", `#${saved.look}`);
  const target = document.getElementById("saccade") as HTMLElement;
  target.replaceChildren();
  mount(App, { target, props: { source: packed(saved.files), link: addressBar, linked: true } });
}
