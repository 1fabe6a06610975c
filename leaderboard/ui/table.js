// Presses inside our own HTML. The server sorts, on the real numbers and not on what is written.
element.addEventListener('click', async (event) => {
  const data = (name) => event.target.closest(`[data-${name}]`)?.dataset[name];
  const pressed = event.target.closest('button');
  if (data('sort')) return trigger('sort', { column: data('sort') });
  if (data('pin')) return trigger('pin', { row: data('pin') });
  if (data('again')) return trigger('again', { row: data('again') });
  if (pressed && 'close' in pressed.dataset) return trigger('open', { row: null });
  try {
    if (data('format')) {
      const file = await server.export_view(location.search, data('format'));
      return lowbit.save(file.name, 'application/octet-stream', file.content);
    }
    if (data('folder')) {
      const file = await server.zip_run(data('folder'));
      return lowbit.save(file.name, 'application/zip', file.content);
    }
  } catch {
    return lowbit.say(pressed, 'Could not be made');
  }
  if (event.target.closest('.card, .pinned, a')) return;
  if (data('row') && !String(getSelection())) trigger('open', { row: data('row') });
});
if (element.closest('#card')) {
  document.addEventListener('keydown', (event) => {
    const listed = event.target.closest?.('[aria-expanded="true"]'); // an open list closes first
    if (event.key === 'Escape' && !listed && element.querySelector('.card')) trigger('open', { row: null });
  }, true);
}
// The pins of the table say which rows are pinned.
const mark = () => {
  const pinned = new Set([...document.querySelectorAll('#pins [data-pin]')].map((button) => button.dataset.pin));
  for (const pin of document.querySelectorAll('#board .pin')) {
    const on = pinned.has(pin.dataset.pin);
    pin.setAttribute('aria-pressed', on);
    pin.textContent = on ? '◆' : '◇';
  }
};
lowbit.figures(element);
watch('value', () => {
  lowbit.figures(element);
  mark();
  const card = element.querySelector('.card'), before = element.dataset.shown;
  if (card && card.dataset.row !== before) card.querySelector('.close').focus({ preventScroll: true });
  if (!card && before && document.activeElement === document.body) {
    document.querySelector(`#board [data-row="${CSS.escape(before)}"] .open`)?.focus({ preventScroll: true });
  }
  element.dataset.shown = card?.dataset.row ?? '';
});
