// Sets the formulas that a page holds as TeX, by the KaTeX that lies beside the site: no request leaves it.
function setFormulas() {
  for (const place of document.querySelectorAll(".arithmatex")) {
    const source = place.textContent.trim();
    const tex = source.slice(2, -2); // without \( \) or \[ \]
    katex.render(tex, place, {displayMode: source.startsWith("\\["), throwOnError: false});
  }
}

// A line of code may break at any hyphen. Names such as --data.val_split stay whole, unless they are longer than a
// phone is wide.
function keepNamesWhole() {
  const long = 40;
  for (const code of document.querySelectorAll(".md-typeset code")) {
    const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) texts.push(walker.currentNode);
    for (const text of texts.filter((node) => node.data.includes("-"))) {
      const parts = text.data.split(/(\S*-\S*)/).map((part, i) => {
        if (i % 2 === 0 || part.length > long) return part;
        const whole = document.createElement("span");
        whole.className = "whole";
        whole.textContent = part;
        return whole;
      });
      text.replaceWith(...parts);
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
  setFormulas();
  keepNamesWhole();
});
