"""Style and behaviour of the report: one style sheet for page and charts, and a script of a few lines."""

CHART_VARIABLES = """
:root{--ink:#1c2430;--soft:#5b6675;--rule:#dfe3e8;--paper:#fff;--panel:#f6f7f9;
--tone0:#0b62c4;--tone1:#9aa4b1;--tone2:#c4510b;--tone3:#1d8348}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebf0;--soft:#a3adba;--rule:#323a46;--paper:#14181e;--panel:#1c222a;
--tone0:#6db1ff;--tone1:#6b7684;--tone2:#ffa25e;--tone3:#6fd598}}
"""

CHART = """
.chart{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.chart .grid{stroke:var(--rule);stroke-width:1}
.chart .tick{fill:var(--soft);font-size:12px}
.chart .axis{fill:var(--ink);font-size:13px}
.chart .line{fill:none;stroke-width:2}
.chart .dot{stroke:var(--paper);stroke-width:1.5}
.chart .dot.strong{stroke-width:2.5}
.chart .line.tone0{stroke:var(--tone0)}.chart .line.tone1{stroke:var(--tone1)}
.chart .line.tone2{stroke:var(--tone2)}.chart .line.tone3{stroke:var(--tone3)}
.chart .dot.tone0{fill:var(--tone0)}.chart .dot.tone1{fill:var(--tone1)}
.chart .dot.tone2{fill:var(--tone2)}.chart .dot.tone3{fill:var(--tone3)}
.chart .mark:hover,.chart .mark:focus{stroke:var(--ink);outline:none}
"""

PAGE = """
*{box-sizing:border-box}
html{color-scheme:light dark}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:21px;margin:48px 0 4px;letter-spacing:-.01em}
p{margin:6px 0 14px;max-width:72ch}.soft{color:var(--soft)}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:22px 0 0}
.figure{background:var(--panel);border-radius:8px;padding:12px 14px}
.figure b{display:block;font-size:24px;line-height:1.25;font-variant-numeric:tabular-nums}
.figure span{color:var(--soft);font-size:14px}
.chart{display:block;width:100%;height:auto;margin:8px 0}
.scroll{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;min-width:100%}
caption{text-align:left;color:var(--soft);padding-bottom:6px}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{font-weight:600;color:var(--soft)}thead th{white-space:normal;vertical-align:bottom}tbody th{color:var(--ink)}
th:first-child,td.text,th.text{text-align:left}
td.wrap{white-space:normal;min-width:16em;text-align:left}
.heat td,.heat th:not(.text){text-align:center;min-width:3.6em}
.heat td.noise{color:var(--soft)}
.heat td.loss{background:color-mix(in srgb,var(--tone2) var(--deep),var(--paper))}
.heat td.gain{background:color-mix(in srgb,var(--tone3) var(--deep),var(--paper))}
tr.strong th,tr.strong td{font-weight:600}
details{margin:10px 0}summary{cursor:pointer;color:var(--soft)}
#tip{position:fixed;z-index:9;max-width:320px;padding:8px 10px;border-radius:6px;
background:var(--ink);color:var(--paper);font-size:13px;line-height:1.4;white-space:pre-line;pointer-events:none;visibility:hidden}
footer{margin-top:56px;color:var(--soft);font-size:14px}
@media (max-width:600px){main{padding:20px 14px 48px}h1{font-size:25px}h2{margin-top:36px}
.chart{min-width:440px}.drawing{overflow-x:auto}}
@media print{main{max-width:none}#tip{display:none}}
"""

SCRIPT = """
(function(){
  var tip=document.getElementById('tip');
  function show(mark){
    tip.textContent=mark.getAttribute('aria-label');
    var box=mark.getBoundingClientRect(), w=tip.offsetWidth, h=tip.offsetHeight;
    var left=Math.min(Math.max(8,box.left+box.width/2-w/2),window.innerWidth-w-8);
    var top=box.top-h-8; if(top<8) top=box.bottom+8;
    tip.style.left=left+'px'; tip.style.top=top+'px'; tip.style.visibility='visible';
  }
  function hide(){tip.style.visibility='hidden';}
  document.querySelectorAll('.mark').forEach(function(mark){
    var title=mark.querySelector('title'); if(!title) return;
    mark.setAttribute('aria-label',title.textContent); mark.setAttribute('role','img'); mark.removeChild(title);
    mark.addEventListener('mouseenter',function(){show(mark);}); mark.addEventListener('focus',function(){show(mark);});
    mark.addEventListener('mouseleave',hide); mark.addEventListener('blur',hide);
  });
  window.addEventListener('scroll',hide,true);
})();
"""
