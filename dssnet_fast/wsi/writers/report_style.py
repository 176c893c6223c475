"""How the report looks, and the little that moves in it."""

CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1c2430;--soft:#5d6878;
--line:#e2e6ec;--accent:#2a62c9;--mark:#ffd400;--warn:#9a4b00;--warn-page:#fff4e5;
--shadow:0 1px 2px rgba(20,30,50,.05),0 4px 16px rgba(20,30,50,.04)}
@media(prefers-color-scheme:dark){:root{--page:#11151b;--card:#191f28;--ink:#e4e9f0;--soft:#98a4b5;
--line:#2b3440;--accent:#82aef8;--warn:#ffc27a;--warn-page:#33260f;--shadow:none}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header{max-width:1180px;margin:0 auto;padding:0 24px}
header{padding-top:36px}
.kind{margin:0;color:var(--soft);font-size:13px;letter-spacing:.02em}
h1{margin:2px 0 22px;font-size:28px;line-height:1.2;font-weight:650;overflow-wrap:anywhere}
h2{margin:40px 0 12px;font-size:18px;font-weight:650}
h3{margin:0 0 6px;font-size:14px;font-weight:600}
a{color:var(--accent)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:1px;margin:0;
background:var(--line);border:1px solid var(--line);border-radius:12px;overflow:hidden;
box-shadow:var(--shadow)}
.figures div{background:var(--card);padding:14px 18px}
.figures dt{color:var(--soft);font-size:12.5px}
.figures dd{margin:0;font-size:22px;font-weight:600;font-variant-numeric:tabular-nums;
white-space:nowrap}
.figures small{font-size:13px;font-weight:400;color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px;
box-shadow:var(--shadow)}
.warn{margin:16px 0 0;padding:10px 16px;border-radius:10px;background:var(--warn-page);
color:var(--warn)}
.controls{display:flex;flex-wrap:wrap;gap:10px 28px;align-items:center;margin-bottom:14px;
font-size:13.5px}
.controls label{display:inline-flex;gap:8px;align-items:center;cursor:pointer}
.controls input{accent-color:var(--accent);width:16px;height:16px;margin:0}
.scale{display:inline-flex;gap:8px;align-items:center;color:var(--soft)}
.scale i{display:block;width:120px;height:10px;border-radius:5px}
.slide{position:relative;margin:0 auto;line-height:0;border-radius:6px;overflow:hidden;
background:#fff}
.slide>img{display:block;width:100%;height:auto}
.slide>.density{position:absolute;left:0;top:0;transition:opacity .15s}
.slide>svg{position:absolute;inset:0;width:100%;height:100%}
.card:has(#density:not(:checked)) .density,.card:has(#density:not(:checked)) .scale{opacity:0}
.unreadable{fill:rgba(200,60,0,.18);stroke:#c83c00;stroke-width:2;vector-effect:non-scaling-stroke}
#place{display:none}
#place.on{display:block}
#place circle{fill:none;vector-effect:non-scaling-stroke}
#place .under{stroke:#000;stroke-width:5;stroke-opacity:.65}
#place .over{stroke:var(--mark);stroke-width:2.5}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:16px}
.histogram{display:block;width:100%;height:auto;font-size:11px;font-variant-numeric:tabular-nums}
.histogram text{fill:var(--soft)}
.histogram .grid{stroke:var(--line)}
.histogram line.median{stroke:var(--ink);stroke-dasharray:3 3}
.histogram text.median{fill:var(--ink);font-weight:600}
.histogram rect{shape-rendering:crispEdges;fill-opacity:.85}
.histogram g:hover rect{opacity:.7}
.classes{display:flex;flex-wrap:wrap;gap:4px 20px;margin:0 0 12px;padding:0;list-style:none;
font-size:13.5px}
.dot{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:6px;
box-shadow:inset 0 0 0 1px rgba(0,0,0,.25)}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(126px,1fr));gap:14px;margin:0;
padding:0;list-style:none}
.gallery li{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden;
font-size:12.5px;font-variant-numeric:tabular-nums;box-shadow:var(--shadow)}
.gallery li.on{border-color:var(--accent);box-shadow:0 0 0 2px var(--accent)}
.gallery button{display:block;width:100%;padding:0;border:0;background:#fff;cursor:pointer;
line-height:0}
.gallery button:focus-visible{outline:3px solid var(--accent);outline-offset:-3px}
.gallery svg{width:100%;aspect-ratio:1}
.gallery path{fill:none;vector-effect:non-scaling-stroke}
.gallery .under{stroke:#000;stroke-opacity:.4;stroke-width:3}
.gallery .over{stroke-width:1.4}
.missing{display:grid;place-items:center;aspect-ratio:1;color:#666;background:#eee;line-height:1.4;
font-size:12px}
.gallery p{margin:0;padding:8px 10px 9px}
.gallery b{display:block;font-weight:600;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.gallery span.soft{color:var(--soft);display:block}
.viewer{display:none}
.served .viewer{display:inline}
table{width:100%;border-collapse:collapse;font-size:13.5px}
th{width:230px;padding:6px 16px 6px 0;text-align:left;vertical-align:top;font-weight:500;
color:var(--soft)}
td{padding:6px 0;overflow-wrap:anywhere;white-space:pre-wrap;font-variant-numeric:tabular-nums}
tr+tr>*{border-top:1px solid var(--line)}
.numbers th,.numbers td{width:auto;text-align:right;padding-left:16px;
padding-right:0;white-space:nowrap}
.numbers th:first-child,.numbers td:first-child{text-align:left;padding-left:0;
white-space:normal;overflow-wrap:normal}
.wide{overflow-x:auto}
footer{max-width:1180px;margin:44px auto 0;padding:0 24px 40px;color:var(--soft);font-size:12.5px}
@media(max-width:640px){th{width:40%}h1{font-size:23px}main,header{padding-left:14px;
padding-right:14px}}
@media print{body{background:#fff}.card,.gallery li{break-inside:avoid;box-shadow:none}}
"""

# A click on a crop marks its place on the slide. Links to the viewer show when it serves the page.
JS = """
(function(){
if(/^https?:$/.test(location.protocol))document.documentElement.classList.add('served');
var place=document.getElementById('place'),slide=document.querySelector('.slide');
document.querySelectorAll('.gallery li').forEach(function(item){
item.querySelector('button').addEventListener('click',function(){
document.querySelectorAll('.gallery li.on').forEach(function(other){other.classList.remove('on')});
item.classList.add('on');
place.querySelectorAll('circle').forEach(function(circle){
circle.setAttribute('cx',item.dataset.x);circle.setAttribute('cy',item.dataset.y)});
place.classList.add('on');
slide.scrollIntoView({block:'center',behavior:'smooth'});
});});
})();
"""
