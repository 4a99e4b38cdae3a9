"""How a report looks, and the script that shows a curve's values under the pointer; without it all can be read too."""

STYLE = '''
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --ink: #1b2430; --dim: #566273; --line: #dde2e8;
  --s1: #2463d6; --s2: #c4570a; --s3: #0b7d63; --s4: #8b3fc0; --good: #0b7d63; --bad: #b42318; --hot: 36, 99, 214 }
@media (prefers-color-scheme: dark) {
  :root { --page: #10141a; --card: #191f27; --ink: #e7ebf0; --dim: #a0abba; --line: #2d3641; --s1: #76a9ff;
    --s2: #f3a15b; --s3: #4fcfa6; --s4: #cf97f5; --good: #4fcfa6; --bad: #ff8a7a;
    --hot: 118, 169, 255 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
    sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px }
h1 { font-size: clamp(1.35rem, 1rem + 1.8vw, 1.9rem); line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 36px 0 10px }
p { margin: 6px 0 } p.dim, .dim { color: var(--dim) }
p.lead { max-width: 75ch; overflow-wrap: anywhere }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; margin: 0 }
.state { display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: .85rem; font-weight: 600;
  border: 1px solid currentColor; color: var(--s1); margin-right: 6px }
.state.finished { color: var(--good) } .state.ended, .state.stopped { color: var(--bad) }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 0; padding: 0; list-style: none }
.tiles li { flex: 1 1 auto; min-width: 116px; max-width: 240px }
.tiles span { display: block; color: var(--dim); font-size: .85rem }
.tiles b { display: block; font-size: 1.4rem; line-height: 1.25; font-variant-numeric: tabular-nums }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 12px }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline; font-size: .92rem }
.key { color: var(--dim); font-size: .85rem; white-space: nowrap; font-variant-numeric: tabular-nums }
.key b { color: var(--ink); font-weight: 600 }
.key i { display: inline-block; width: 16px; height: 3px; border-radius: 2px; margin-right: 5px;
  vertical-align: middle }
i.s1 { background: var(--s1) } i.s2 { background: var(--s2) } i.s3 { background: var(--s3) }
i.s4 { background: var(--s4) }
svg { display: block; width: 100%; height: auto; margin-top: 4px; touch-action: pan-y }
svg:focus-visible, summary:focus-visible, .wide:focus-visible, pre:focus-visible { outline: 2px solid var(--s1);
  outline-offset: 2px; border-radius: 4px }
svg text { fill: var(--dim); font-size: 12.5px; font-variant-numeric: tabular-nums }
@media (min-width: 520px) and (max-width: 699px) { svg text { font-size: 9px } }
@media (min-width: 700px) and (max-width: 899px) { .charts { grid-template-columns: 1fr 1fr } }
@media (min-width: 900px) { svg text { font-size: 10.5px } }
svg .y { text-anchor: end } svg .x, svg .name { text-anchor: middle } sup { line-height: 0 }
svg path { stroke: var(--line); fill: none } svg .tick { stroke: var(--dim) } svg .cursor { stroke: var(--dim) }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }
polyline.s1 { stroke: var(--s1) } polyline.s2 { stroke: var(--s2) } polyline.s3 { stroke: var(--s3) }
polyline.s4 { stroke: var(--s4) }
circle.s1 { fill: var(--s1) } circle.s2 { fill: var(--s2) } circle.s3 { fill: var(--s3) } circle.s4 { fill: var(--s4) }
.read { min-height: 1.3em; margin: 0; font-size: .82rem; color: var(--dim); font-variant-numeric: tabular-nums }
html:not(.scripted) .read { display: none }
.strips { display: grid; grid-template-columns: max-content minmax(0, 768px); gap: 6px 14px; align-items: center;
  width: fit-content; max-width: 100% }
.strips > * { margin: 0 } .strips > div, .thumbs { display: grid; gap: 5px }
.strips img, .thumbs img { display: block; width: 100%; height: auto; border-radius: 4px }
.strips .what { font-size: .9rem; color: var(--dim) }
@media (max-width: 600px) { .strips { grid-template-columns: minmax(0, 1fr); gap: 2px }
  .strips .what { margin-top: 6px } }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 12px }
.pairs figcaption { font-size: .92rem; overflow-wrap: anywhere } .pairs figcaption span { color: var(--dim) }
.thumbs { grid-template-columns: repeat(4, 1fr); margin-top: 8px }
.flush { padding: 0 } .wide { overflow: auto; padding: 0; max-height: 560px }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 5px 14px; border-bottom: 1px solid var(--line); vertical-align: top }
tr:last-child > * { border-bottom: 0 } thead th { color: var(--dim); font-weight: 600; white-space: nowrap }
.numbers thead th { position: sticky; top: 0; background: var(--card) }
tbody th { font-weight: 500; color: var(--dim) }
.facts th { width: 1%; white-space: nowrap } .facts td { overflow-wrap: anywhere; min-width: 9em }
.numbers td, .numbers th { text-align: right; white-space: nowrap }
.numbers .text { text-align: left; white-space: normal; overflow-wrap: anywhere }
.matrix { width: auto } .matrix td { text-align: right; padding: 4px 9px; border: 0; min-width: 3em }
.matrix th { border: 0; padding: 4px 9px; max-width: 11em; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; font-weight: 500; color: var(--dim) }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); max-width: none; max-height: 11em;
  padding: 8px 4px; vertical-align: bottom; text-align: left } .matrix td.right { font-weight: 700 }
.fit { width: fit-content; max-width: 100% }
pre { margin: 0; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .86rem;
  font-family: ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace }
details { margin-top: 10px } summary { cursor: pointer; padding: 4px 0; font-weight: 600 }
footer { margin-top: 40px; color: var(--dim); font-size: .85rem }
@media print { .card, figure { break-inside: avoid } }
'''

SCRIPT = '''
document.documentElement.classList.add('scripted');
for (const svg of document.querySelectorAll('svg[data-points]')) {
  const {x, y, plane, box} = JSON.parse(svg.dataset.points), [left, right, top, bottom] = box;
  const read = svg.parentNode.querySelector('.read'), make = name => svg.appendChild(
    document.createElementNS(svg.namespaceURI, name));
  const cursor = make('path'), dots = Object.keys(y).map((name, i) => {
    const dot = make('circle'); dot.setAttribute('class', 's' + (i + 1)); dot.setAttribute('r', 4); return dot; });
  cursor.setAttribute('class', 'cursor');
  const across = value => left + (right - left) * (value - plane[0]) / (plane[1] - plane[0]);
  const up = value => bottom - (bottom - top) * (value - plane[2]) / (plane[3] - plane[2]);
  let at = x.length - 1;
  const hide = () => { read.textContent = ''; for (const mark of [cursor, ...dots]) mark.style.display = 'none'; };
  const show = index => {
    at = Math.max(0, Math.min(x.length - 1, index));
    cursor.style.display = '';
    cursor.setAttribute('d', `M${across(x[at])} ${top}V${bottom}`);
    const words = Object.entries(y).map(([name, values], i) => {
      dots[i].style.display = values[at] === null ? 'none' : '';
      dots[i].setAttribute('cx', across(x[at]));
      dots[i].setAttribute('cy', values[at] === null ? 0 : up(values[at]));
      return values[at] === null ? '' : `${name} ${values[at]}`; });
    read.textContent = `epoch ${x[at]}: ` + words.filter(Boolean).join(', ');
  };
  svg.addEventListener('pointermove', event => {
    const bounds = svg.getBoundingClientRect();
    const value = (event.clientX - bounds.left) * svg.viewBox.baseVal.width / bounds.width;
    let nearest = 0;
    x.forEach((epoch, i) => {
      if (Math.abs(across(epoch) - value) < Math.abs(across(x[nearest]) - value)) nearest = i; });
    show(nearest);
  });
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('focus', () => { if (svg.matches(':focus-visible')) show(at); });
  svg.addEventListener('blur', hide);
  svg.addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9}[event.key];
    if (step) { show(at + step); event.preventDefault(); }
  });
  hide();
}
'''
