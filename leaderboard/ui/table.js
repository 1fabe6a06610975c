// A click on a header asks the server for the order: it sorts on the real numbers, not on what is written.
element.addEventListener('click', (event) => {
  const header = event.target.closest('[data-sort]');
  if (header) trigger('sort', { column: header.dataset.sort });
});
