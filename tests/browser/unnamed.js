() => [...document.querySelectorAll('[role=img], img, button, select, section')]
  .filter((e) => !(e.getAttribute('aria-label') || e.alt || e.textContent.trim() || e.labels?.length))
  .map((e) => e.outerHTML.slice(0, 80))
