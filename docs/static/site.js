// What scrolls sideways can be reached and scrolled with the keyboard; captions of the theme say their level.
addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll("pre, .table-wrapper")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
  for (const heading of document.querySelectorAll("[role=heading]:not([aria-level])")) {
    heading.ariaLevel = 2;
  }
});
