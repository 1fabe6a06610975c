// Runs as buttons: pressing one shows it. What is written anew keeps the focus and how far it is scrolled.
let held = null;
const frames = () => element.querySelectorAll('.scroll');
const offsets = [];
const tell = (event) => {
  const cell = event.target.closest?.('[data-detail]'), line = element.querySelector('.detail');
  if (cell && line) line.textContent = cell.dataset.detail;
};
element.addEventListener('click', (event) => {
  const run = event.target.closest('button[data-run]');
  if (run) trigger('pick', { run: run.dataset.run });
});
element.addEventListener('mouseover', tell);
element.addEventListener('focusin', (event) => { held = event.target.dataset?.run ?? null; tell(event); });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) held = null; });
document.addEventListener('pointerdown', (event) => { if (!element.contains(event.target)) held = null; });
element.addEventListener('scroll', () => {
  frames().forEach((frame, number) => { offsets[number] = frame.scrollLeft; });
}, true);
watch('value', () => {
  frames().forEach((frame, number) => { frame.scrollLeft = offsets[number] ?? 0; });
  if (held && document.activeElement === document.body) {
    element.querySelector(`button[data-run="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
  }
});
