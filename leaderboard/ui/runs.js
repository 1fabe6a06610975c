// Runs as buttons: pressing one shows it, and brings its card into view. What is written anew keeps the focus, how far
// it is scrolled, and what was read of a run.
let held = null, read = null;
const frames = () => element.querySelectorAll('.scroll');
const offsets = [];
const button = (run) => run && element.querySelector(`button[data-run="${CSS.escape(run)}"]`);
const tell = (cell) => {
  if (!cell?.dataset.detail) return;
  for (const line of element.querySelectorAll('.detail')) line.textContent = '';
  cell.closest('.of-model').querySelector('.detail').textContent = cell.dataset.detail;
  read = cell.dataset.run;
};
const run = (event) => event.target.closest?.('button[data-run]');
element.addEventListener('click', (event) => {
  if (!run(event)) return;
  trigger('pick', { run: run(event).dataset.run });
  document.querySelector('#run')?.scrollIntoView({ block: 'nearest' });
});
element.addEventListener('mouseover', (event) => tell(run(event)));
element.addEventListener('focusin', (event) => { held = run(event)?.dataset.run ?? null; tell(run(event)); });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) held = null; });
document.addEventListener('pointerdown', (event) => { if (!element.contains(event.target)) held = null; });
element.addEventListener('scroll', () => {
  frames().forEach((frame, number) => { offsets[number] = frame.scrollLeft; });
}, true);
watch('value', () => {
  frames().forEach((frame, number) => { frame.scrollLeft = offsets[number] ?? 0; });
  if (document.activeElement === document.body) button(held)?.focus({ preventScroll: true });
  tell(button(read));
});
