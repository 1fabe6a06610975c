// Presses inside our own HTML. The server sorts, on the real numbers and not on what is written.
element.addEventListener('click', async (event) => {
  const at = (name) => event.target.closest(`[data-${name}]`)?.dataset[name];
  const pressed = event.target.closest('button');
  if (at('sort')) return trigger('sort', { column: at('sort') });
  if (at('pin')) return trigger('pin', { row: at('pin') });
  if (at('again')) return trigger('again', { row: at('again') });
  if (pressed && 'close' in pressed.dataset) return trigger('open', { row: null });
  try {
    if (at('format')) {
      const file = await server.export_view(location.search, at('format'));
      return lowbit.save(file.name, 'application/octet-stream', file.content);
    }
    if (at('folder')) {
      const file = await server.zipped(at('folder'));
      return lowbit.save(file.name, 'application/zip', file.content);
    }
  } catch {
    return lowbit.say(pressed, 'Could not be made');
  }
  if (event.target.closest('.card, .pinned, a')) return;
  if (at('row') && !String(getSelection())) trigger('open', { row: at('row') });
});
element.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && element.querySelector('.card')) trigger('open', { row: null });
});
lowbit.figures(element);
watch('value', () => {
  lowbit.figures(element);
  const card = element.querySelector('.card');
  if (card && card.dataset.row !== element.dataset.shown) card.querySelector('.close').focus({ preventScroll: true });
  element.dataset.shown = card?.dataset.row ?? '';
});
