"""The page's style sheet: system fonts, light and dark, one column that fits a phone."""

CSS = """
:root { color-scheme: light dark; --ground: #fbfaf7; --card: #fff; --ink: #22252a; --soft: #686e78; --rule: #e4e2dc;
  --accent: #2f6f73; --good: #2d7d46; --bad: #b3382c; --s0: #2f6f73; --s1: #d1803b; --s2: #6b5ca5; --s3: #8a8f98; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --card: #1f2226; --ink: #e6e4df; --soft: #9aa0a9;
  --rule: #33373d; --accent: #7cc4c6; --good: #74c68d; --bad: #ef8d81; --s0: #7cc4c6; --s1: #eaa568; --s2: #a99be0;
  --s3: #868c96; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 2rem; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 .3rem; text-wrap: balance; }
h2 { font-size: 1.25rem; letter-spacing: -0.01em; margin: 3.2rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .25rem 0 1rem; max-width: 68ch; } .soft, small, figcaption { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.scores { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .8rem; margin: 1.6rem 0; }
.scores .card { padding: .9rem 1rem; } .scores b { display: block; font-size: 1.75rem; line-height: 1.2;
  font-variant-numeric: tabular-nums; letter-spacing: -0.02em; } .scores small { display: block; line-height: 1.35; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 1rem;
  align-items: start; } .tables .card { padding: .9rem 1rem .5rem; } .tables h3 { margin: 0; }
.tables td:last-child { padding-right: 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; font-weight: 600; color: var(--soft); } th, td { padding: .45rem .7rem .45rem 0;
  border-bottom: 1px solid var(--rule); vertical-align: top; } td.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; } tr:last-child td { border-bottom: 0; }
code { font: .82rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
img { image-rendering: pixelated; display: block; border-radius: 4px; background: var(--rule); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 1rem; }
.chart { margin: 0; padding: .9rem 1rem; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.chart figcaption { font-size: .9rem; color: var(--ink); font-weight: 600; } .chart svg { width: 100%; height: auto; }
.chart text { font: 11px system-ui, sans-serif; fill: var(--soft); } .chart .grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.2rem;
  font-size: .82rem; color: var(--soft); } .legend b { color: var(--ink); } .key { display: inline-block; width: .9em;
  height: .28em; border-radius: 2px; margin-right: .4em; vertical-align: middle; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.line.s3 { stroke: var(--s3); } .dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); }
.dot.s3 { fill: var(--s3); } .key.s0 { background: var(--s0); } .key.s1 { background: var(--s1); }
.key.s2 { background: var(--s2); } .key.s3 { background: var(--s3); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .8rem; }
.cards .card { padding: .7rem; font-size: .88rem; line-height: 1.4; overflow-wrap: anywhere; }
.cards img { width: 100%; aspect-ratio: 1; object-fit: contain; margin-bottom: .5rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .35rem; } .pair img { margin: 0; }
.triple { display: grid; grid-template-columns: repeat(3, 1fr); gap: .35rem; }
.drawn td, .drawn th { padding: .35rem; text-align: center; vertical-align: middle; }
.drawn th { font-weight: 500; font-size: .85rem; } .drawn table { table-layout: fixed; }
.drawn th:first-child { text-align: right; width: 4rem; }
.thumbs { display: flex; flex-wrap: wrap; gap: .25rem; justify-content: center; }
.thumb { position: relative; } .thumb img { width: clamp(38px, 7vw, 64px); height: auto; }
.thumb.wrong img { outline: 2px solid var(--bad); outline-offset: -2px; }
.thumb .mark { position: absolute; right: 2px; bottom: 2px; background: var(--card); border-radius: 50%; width: 1.15em;
  height: 1.15em; font-size: .68rem; line-height: 1.15em; text-align: center; }
.right { color: var(--good); } .wrong { color: var(--bad); } .mark { font-weight: 700; }
.dialogue { display: flex; flex-direction: column; gap: .6rem; max-width: 620px; } .turn { padding: .6rem .9rem;
  border-radius: 14px; background: var(--card); border: 1px solid var(--rule); max-width: 85%; align-self: flex-start; }
.turn.user { align-self: flex-end; background: color-mix(in srgb, var(--accent) 14%, var(--card)); }
.turn img { width: 128px; margin: .3rem 0; } .turn small { display: block; line-height: 1.2; }
.turn div { overflow-wrap: anywhere; }
.document { white-space: pre-wrap; } .document small { color: var(--soft); display: block; white-space: normal; }
.document img { width: 128px; aspect-ratio: auto; margin: .3rem 0; }
.bar { height: .5rem; border-radius: 3px; background: var(--accent); min-width: 2px; }
td.wide { width: 34%; vertical-align: middle; } .left-out { color: var(--soft); font-style: italic; }
"""
