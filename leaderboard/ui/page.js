// What the page does in the browser: the view in the address, charts in the theme's colours, copying and downloads.
window.lowbit = (() => {
  // --- the view in the address. Each part of the page owns its parameters; the rest is left as it is. ---
  const owns = {
    board: (name) => !/^(x\.|fit\.|ask\.|tab$|row$|pin$|__)/.test(name),
    details: (name) => name === 'row' || name === 'pin',
    explore: (name) => name.startsWith('x.'),
    fit: (name) => name.startsWith('fit.'),
    ask: (name) => name.startsWith('ask.'),
    tab: (name) => name === 'tab',
  };
  let restoring = true; // what the page puts in the address by itself, until a visitor does something, is no new step
  let moved = false; // back or forward: the address is already the one to show
  for (const kind of ['pointerdown', 'keydown', 'input']) {
    document.addEventListener(kind, () => { restoring = moved = false; }, true);
  }
  const ONE_STEP_MS = 100; // what one answer changes in several parts is one step
  let stepped = -ONE_STEP_MS;
  window.addEventListener('popstate', () => { restoring = moved = true; });
  // A link to a view shows nothing before that view is there: nothing jumps.
  const shown = () => requestAnimationFrame(() => requestAnimationFrame(() => {
    document.documentElement.classList.remove('restoring');
  }));
  if ([...new URLSearchParams(location.search).keys()].some((name) => !name.startsWith('__'))) {
    document.documentElement.classList.add('restoring');
    setTimeout(shown, 10000); // the server may never answer
  }
  const settled = (parameters, without) =>
    [...parameters].filter(([name]) => name !== without).map((pair) => pair.join('=')).sort().join('&');

  const go = (part, search) => {
    if (moved || part === 'tab' && restoring) return; // tabs tell that they are chosen while the page is made, too
    const now = new URLSearchParams(location.search), next = new URLSearchParams();
    for (const [name, value] of now) if (!owns[part](name)) next.append(name, value);
    for (const [name, value] of new URLSearchParams(search)) next.append(name, value);
    if (settled(now) === settled(next)) return;
    const url = location.pathname + (next.size ? '?' + next : '');
    const typing = settled(now, 'q') === settled(next, 'q') && now.has('q');
    const onward = !restoring && !typing && performance.now() - stepped > ONE_STEP_MS;
    if (onward) stepped = performance.now();
    history[onward ? 'pushState' : 'replaceState'](null, '', url);
  };

  // --- charts ---
  let loading;
  const plotly = () => loading ??= new Promise((done, failed) => {
    const script = document.createElement('script');
    script.src = 'PLOTLY';
    script.onload = () => done(window.Plotly);
    script.onerror = () => { loading = undefined; failed(); };
    document.head.append(script);
  });
  const color = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const themed = (value) => {
    if (typeof value === 'string') return value.startsWith('var(') ? color(value.slice(4, -1)) : value;
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === 'object') {
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, themed(part)]));
    }
    return value;
  };
  const axis = () => ({ gridcolor: color('--rule'), linecolor: color('--edge'), tickcolor: color('--edge'),
    zerolinecolor: color('--rule') });
  // The legend stands below the axis, in room of its own: as many lines as names of this width need, beyond the two
  // that a figure's height has room for.
  const LEGEND_LINE = 19;
  const lines = (named, width) => {
    const longest = Math.max(0, ...named.map((trace) => trace.name.length));
    const across = Math.max(1, Math.floor((width - 60) / (48 + 6.2 * longest)));
    return named.length > 1 ? Math.max(0, Math.ceil(named.length / across) - 2) : 0;
  };
  const drawn = new Set();
  const draw = async (chart) => {
    try {
      const library = await plotly();
      if (!chart.isConnected) return drawn.delete(chart);
      const figure = themed(JSON.parse(chart.dataset.figure));
      for (const trace of figure.data) {
        if (trace.texttemplate) trace.textfont = { color: color('--ink'), ...trace.textfont };
      }
      const named = figure.data.filter((trace) => trace.name && trace.showlegend !== false);
      const height = (figure.layout.height ?? 400) + LEGEND_LINE * lines(named, chart.clientWidth);
      chart.style.height = `${height}px`;
      const layout = {
        margin: { l: 52, r: 14, t: 26, b: 44 }, autosize: true, dragmode: false,
        paper_bgcolor: color('--sheet'), plot_bgcolor: color('--sheet'),
        font: { family: '"IBM Plex Sans", sans-serif', size: 12, color: color('--ink') },
        legend: { orientation: 'h', yref: 'container', y: 0, yanchor: 'bottom', font: { size: 11 } },
        hoverlabel: { bgcolor: color('--ink'), bordercolor: color('--ink'), align: 'left',
          font: { color: color('--sheet'), family: '"IBM Plex Sans", sans-serif', size: 12 } },
        ...figure.layout, height,
        xaxis: { ...axis(), ...figure.layout.xaxis }, yaxis: { ...axis(), ...figure.layout.yaxis },
      };
      await library.react(chart, figure.data, layout, { displayModeBar: false, responsive: true });
      if (!drawn.has(chart)) {
        chart.on('plotly_click', ({ points: [{ text }] }) => {
          chart.dispatchEvent(new CustomEvent('pressed', { bubbles: true, detail: { text } }));
        });
      }
      drawn.add(chart);
    } catch {
      chart.innerHTML = '<p class="sorry">This chart could not be drawn; its numbers are in the table below.</p>';
    }
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
    }
  }, { rootMargin: '200px' });
  const figures = (element) => {
    for (const chart of element.querySelectorAll('[data-figure]')) seen.observe(chart);
  };
  const redraw = (chart) => { // one on a tab that is not shown waits until it is
    if (chart.checkVisibility()) draw(chart);
    else seen.observe(chart);
  };
  new MutationObserver(() => { drawn.forEach(redraw); })
    .observe(document.body ?? document.documentElement, { attributes: true, attributeFilter: ['class'] });

  // --- buttons in our own HTML ---
  const save = (name, type, base64) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([bytes], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const say = (button, text) => {
    const before = button.dataset.label ?? button.textContent;
    button.dataset.label = before;
    button.textContent = text;
    setTimeout(() => { button.textContent = before; }, 1600);
  };
  const copy = async (button, text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const box = Object.assign(document.createElement('textarea'), { value: text });
      document.body.append(box);
      box.select();
      document.execCommand('copy');
      box.remove();
    }
    say(button, 'Copied');
  };
  document.addEventListener('click', async (event) => {
    const button = event.target.closest?.('button[data-copy], button[data-image], button[data-link], button[data-save]');
    if (!button) return;
    const { save: name, type, content } = button.dataset;
    if (name) return save(name, type, content);
    if ('link' in button.dataset) return copy(button, location.href);
    if ('copy' in button.dataset) return copy(button, button.dataset.copy);
    const chart = button.closest('.figure').querySelector('[data-figure]');
    const library = await plotly();
    if (!drawn.has(chart)) await draw(chart);
    library.downloadImage(chart, { format: button.dataset.image, filename: `low-bit-lab-${chart.id}`, scale: 2,
      width: chart.clientWidth, height: chart.clientHeight });
  });
  // --- tokens that say more when they are pointed at, or gone along with the arrow keys ---
  const tell = (event) => {
    const token = event.target.closest?.('.token');
    if (!token) return;
    const all = token.closest('.along');
    all.querySelector('.token[aria-selected="true"]')?.setAttribute('aria-selected', 'false');
    token.setAttribute('aria-selected', 'true');
    all.querySelector('.detail').textContent = token.dataset.detail;
  };
  document.addEventListener('mouseover', tell);
  document.addEventListener('focusin', tell);
  document.addEventListener('keydown', (event) => {
    const token = event.target.closest?.('.token'), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!token || !step) return;
    const tokens = [...token.parentElement.children], next = tokens[tokens.indexOf(token) + step];
    if (!next) return;
    event.preventDefault();
    token.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return { go, shown, figures, save, say };
})();
