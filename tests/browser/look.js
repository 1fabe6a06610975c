// What browser tests look at in the page: (these).contrast(), and so on. Each returns what is wrong, or what is seen.
({
  // The visible text whose contrast with what is behind it is below WCAG 2.1 AA (1.4.3): 4.5, or 3 for large text.
  contrast() {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const known = new Map();
    const rgba = (color) => {
      if (!known.has(color)) {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
        known.set(color, [red, green, blue, alpha / 255]);
      }
      return known.get(color);
    };
    const over = ([red, green, blue, alpha], below) =>
      [red, green, blue].map((one, at) => alpha * one + (1 - alpha) * below[at]).concat(1);
    const luminance = (color) => {
      const [red, green, blue] = color.slice(0, 3).map((one) => {
        const share = one / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ratio = (one, other) => {
      const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
      return (light + 0.05) / (dark + 0.05);
    };
    const COLORS = /(?:rgba?|hsla?|oklab|oklch|lab|lch|color)\([^()]*\)|#[0-9a-f]{3,8}/gi;
    // What holds for an element's ancestors is found once for all the texts in them.
    const once = (find) => {
      const found = new Map();
      return (element) => found.get(element) ?? found.set(element, find(element)).get(element);
    };
    // Every colour that can be behind an element: a gradient has several.
    const behind = once((element) => {
      const style = getComputedStyle(element), fill = rgba(style.backgroundColor), parent = element.parentElement;
      const below = fill[3] === 1 || !parent ? [[255, 255, 255, 1]] : behind(parent);
      const found = below.map((color) => over(fill, color));
      const painted = style.webkitBackgroundClip !== 'text' && style.backgroundImage.match(COLORS);
      return painted ? painted.flatMap((color) => found.map((one) => over(rgba(color), one))) : found;
    });
    const opacity = once((element) =>
      Number(getComputedStyle(element).opacity) * (element.parentElement ? opacity(element.parentElement) : 1));
    const failures = [];
    const check = (element, text, color, style) => {
      const [red, green, blue, alpha] = rgba(color);
      const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      const ink = [red, green, blue, alpha * opacity(element)];
      const worst = Math.min(...behind(element).map((below) => ratio(over(ink, below), below)));
      if (worst < (large ? 3 : 4.5)) {
        failures.push(`${worst.toFixed(2)} ${element.tagName.toLowerCase()}.${element.getAttribute('class')}: ${text.trim().slice(0, 40)}`);
      }
    };
    const shown = (element) => {
      const box = element.getBoundingClientRect();
      return box.width > 1 && box.height > 1 && element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode.data, element = walker.currentNode.parentElement;
      if (!text.trim() || element.closest('script, style, noscript, :disabled') || !shown(element)) continue;
      if (element.closest('.heatmap-label')) continue; // stands on painted cells: the scale's colours have their own test
      const style = getComputedStyle(element);
      check(element, text, element instanceof SVGElement ? style.fill : style.color, style);
    }
    for (const box of document.querySelectorAll('input:not([type=checkbox], [type=radio], [type=file]), textarea')) {
      if (box.disabled || !shown(box)) continue;
      const style = getComputedStyle(box, box.value ? null : '::placeholder');
      if (box.value || box.placeholder) check(box, box.value || box.placeholder, style.color, style);
    }
    return [...new Set(failures)];
  },

  // The text that an ancestor cuts off where one can't scroll to it.
  clipped() {
    const cut = [], range = document.createRange(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
      if (!text || element.closest('script, style, .katex-mathml, svg, option')) continue;
      if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
      range.selectNodeContents(walker.currentNode);
      const place = range.getBoundingClientRect();
      for (let at = element; at && place.width > 1; at = at.parentElement) {
        const flow = getComputedStyle(at).overflowX, box = at.getBoundingClientRect();
        if (box.width < 2 || flow === 'auto' || flow === 'scroll') break;
        const root = at === document.documentElement, right = root ? innerWidth : box.right;
        if ((root || flow !== 'visible') && (place.right > right + 1 || place.left < box.left - 1)) {
          cut.push(`clipped: ${text.slice(0, 40)} in ${at.tagName}.${at.className}`);
          break;
        }
      }
    }
    return cut;
  },

  // What can be pressed with less than 24 pixels to press on, links in running text aside (WCAG 2.2, 2.5.8).
  small() {
    const visible = (one) => one.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    return [...document.querySelectorAll('button, a[href], summary, input, textarea, [role=tab], [role=button]')]
      .map((one) => one.closest('label') ?? (one.matches('[role=combobox]') ? one.closest('.wrap') : one))
      .filter((one) => visible(one) && !one.matches(':is(p, dd, li) a'))
      .map((one) => [one.outerHTML.slice(0, 90), one.getBoundingClientRect()])
      .filter(([, box]) => Math.min(box.width, box.height) > 1 && Math.min(box.width, box.height) < 23.9)
      .map(([text, box]) => `small: ${box.width.toFixed(0)}x${box.height.toFixed(0)} ${text}`);
  },

  // The focused control's name, and whether one sees that it has the focus; null where nothing has it.
  focus() {
    const at = document.activeElement;
    if (!at || at === document.body) return null;
    let ring = false;
    for (let one = at, up = 0; one && up < 5; one = one.parentElement, up += 1) {
      const style = getComputedStyle(one);
      ring ||= (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1) || style.boxShadow !== 'none';
    }
    const name = at.getAttribute('aria-label') || at.closest('label')?.textContent || at.textContent;
    return { name: name.replace(/[▴▾]/g, '').trim(), ring };
  },

  // Keeps in window.views, frame by frame, what of a view is to be seen; each state once.
  record() {
    const views = window.views = [];
    const text = (selector) => document.querySelector(selector)?.textContent.trim() ?? '';
    const look = () => ({
      tab: text('[role=tab][aria-selected=true]'), summary: text('#board .summary'), sort: text('th[aria-sort$=ending]'),
      chosen: [...document.querySelectorAll('label.selected')].map((label) => label.textContent.trim()),
      search: document.querySelector('.search :is(input, textarea)')?.value, card: text('#card h2'),
      pinned: text('#pins .chips'), quality: document.querySelector('input[aria-label=Quality]')?.value,
      charts: document.querySelectorAll('[data-figure]').length,
    });
    const frame = () => {
      const there = document.querySelector('#rooms')?.checkVisibility({ visibilityProperty: true });
      const seen = there && JSON.stringify(look());
      if (seen && seen !== views.at(-1)) views.push(seen);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  },
})
