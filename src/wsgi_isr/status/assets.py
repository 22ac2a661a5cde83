"""The style and the script of the status page: parts of each answer, so that nothing is fetched."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --back: #f5f6f8; --panel: #fff; --ink: #1b2431; --soft: #556070;
  --rule: #d9dee6; --edge: #7c8797; --accent: #175b99; --good: #17693f; --warn: #965f00;
  --bad: #b0251d; }
@media (prefers-color-scheme: dark) { :root { --back: #11151b; --panel: #191f28; --ink: #e3e8ef;
  --soft: #9eaaba; --rule: #2d3643; --edge: #75808f; --accent: #86bdf3; --good: #72d09a;
  --warn: #e8b75a; --bad: #ff958c; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--back); overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
.bar, main { max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
header { background: var(--panel); border-bottom: 1px solid var(--rule); }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: 0 1.5rem; }
.name { font-weight: 650; padding: .7rem 0; }
nav { display: flex; gap: 0 .25rem; } .tools { display: flex; gap: .5rem; margin-left: auto;
  padding: .2rem 0; }
nav a { padding: .75rem .7rem .55rem; color: var(--soft); text-decoration: none;
  border-bottom: .2rem solid transparent; }
nav a[aria-current] { color: var(--ink); border-color: var(--accent); }
nav a:hover { color: var(--ink); }
main { padding-top: 1.25rem; padding-bottom: 3rem; }
h1 { font-size: 1.45rem; line-height: 1.3; margin: 0 0 1rem; font-weight: 650; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; font-weight: 650; }
a { color: var(--accent); text-underline-offset: .15em; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: .2rem; }
.skip { position: absolute; left: -99rem; background: var(--panel); padding: .6rem 1rem; }
.skip:focus { left: .5rem; top: .5rem; z-index: 1; }
.note, figure, .tiles > div, .filter, .login, .facts, table { background: var(--panel);
  border: 1px solid var(--rule); border-radius: .5rem; padding: .8rem 1rem; margin: 0; }
.note { margin: 0 0 1rem; border-left: .35rem solid var(--accent); } .note p { margin: 0; }
.note.good { border-left-color: var(--good); } .note.warn { border-left-color: var(--warn); }
.note.bad { border-left-color: var(--bad); } .note p:first-child:not(:last-child) {
  font-weight: 650; }
.soft, .tags, dt, figcaption, .axis, label, thead, td::before { color: var(--soft); }
.error { color: var(--bad); }
.tiles, .charts { display: grid; gap: .75rem; margin: 0;
  grid-template-columns: repeat(auto-fit, minmax(min(10.5rem, 46%), 1fr)); }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.tiles dt, .tiles span, figcaption, .axis, .key, .tags, label, thead { font-size: .875rem; }
.tiles dd { margin: 0; color: var(--soft); } .tiles strong { display: block; color: var(--ink);
  font-size: 1.6rem; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
meter { display: block; width: 100%; height: .9rem; }
svg { display: block; width: 100%; height: 5.5rem; margin: .5rem 0 .25rem;
  border-bottom: 1px solid var(--edge); }
rect, .key li::before { fill: var(--accent); background: var(--accent); }
rect.stale { fill: var(--edge); } rect.waited { fill: var(--warn); }
rect.failed { fill: var(--bad); } .key .stale::before { background: var(--edge); }
.key .waited::before { background: var(--warn); } .key .failed::before { background: var(--bad); }
.axis { display: flex; justify-content: space-between; }
.key { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: .3rem 0 0; padding: 0;
  list-style: none; }
.key li::before { content: ""; display: inline-block; width: .7rem; height: .7rem;
  margin-right: .4rem; border-radius: .15rem; }
table { width: 100%; border-spacing: 0; padding: .2rem 0; font-size: .9375rem; }
th, td { text-align: left; padding: .5rem .7rem; vertical-align: top; }
td, dl.facts > :nth-child(n+3) { border-top: 1px solid var(--rule); }
th { font-weight: 500; white-space: nowrap; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.state { white-space: nowrap; } .state::before { content: "\\25cf"; margin-right: .35rem; }
.state.fresh::before { color: var(--good); } .state.stale::before { color: var(--warn); }
.state:is(.expired, .failed)::before { color: var(--bad); }
.facts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; padding: .2rem 0; }
.facts > * { padding: .45rem 1rem; margin: 0; }
button, input, select { font: inherit; color: inherit; background: var(--panel); max-width: 100%;
  min-height: 2.75rem; border: 1px solid var(--edge); border-radius: .4rem;
  padding: .35rem .8rem; }
button { cursor: pointer; } button:hover { border-color: var(--ink); }
.main { background: var(--accent); border-color: var(--accent); color: var(--panel); }
.buttons { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; margin: 1rem 0; }
.buttons a { padding: .6rem 0; } td a, dd a { display: inline-block; min-height: 1.5rem; }
.filter { display: flex; flex-wrap: wrap; gap: .6rem .8rem; align-items: end; margin: 0 0 1rem; }
label { display: grid; gap: .2rem; } label > * { font-size: 1rem; color: var(--ink); }
.wide { flex: 1 1 16rem; } .login { display: grid; gap: .9rem; max-width: 24rem; }
@media (max-width: 44rem) {
  nav { order: 1; margin: 0 -.7rem; }
  thead { display: block; position: absolute; width: 1px; height: 1px; overflow: hidden; }
  tr { display: block; padding: .5rem 0; } tr + tr { border-top: 1px solid var(--rule); }
  td { display: grid; grid-template-columns: 7rem 1fr; border: 0; padding: .15rem 1rem;
    text-align: left; } td.num { text-align: left; } td::before { content: attr(data-label); }
  td:first-child { display: block; } td:first-child::before { content: none; }
  .facts { grid-template-columns: 7rem 1fr; }
  .filter label, .filter button { flex: 1 1 40%; } .filter .wide { flex-basis: 100%; }
}
"""

#: Fetches this very page every five seconds, and shows the parts that may have changed.
JS = """
const button = document.getElementById("pause");
if (button) {
  let paused = false;
  button.hidden = false;
  button.onclick = () => {
    paused = !paused;
    button.textContent = paused ? "Resume" : "Pause";
  };
  setInterval(async () => {
    const busy = document.activeElement.closest("[data-live]") || String(getSelection());
    if (paused || busy || document.hidden) return;
    try {
      const answer = await fetch(location.href, { redirect: "error" });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) return;
      const found = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const other = found.getElementById(part.id);
        if (other && other.innerHTML !== part.innerHTML) part.replaceWith(other);
      }
    } catch { /* The server may be restarting: the next attempt follows. */ }
  }, 5000);
}
"""
