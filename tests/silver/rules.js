// Rules for the tables that only the tests have, in the form of a table's entry in includes/cleaning.js.
const tidy = cell => `LOWER(TRIM(${cell}))`;

module.exports = {
  plain: {},
  // `+ 1` may not be applied twice, and a missing `a` must not be taken for a left-out or an exceptional one.
  cleaned: {
    columns: { a: { clean: cell => `COALESCE(${tidy(cell)}, 'none')` }, c: { clean: cell => `${cell} + 1` }, n: { clean: cell => `COALESCE(${cell}, 0)` } },
    flags: { low: { when: "n < 0", description: "n is below zero" } },
  },
  cleaned_otherwise: { columns: { a: { clean: cell => `UPPER(${cell})` } } },
  partitioned: { partition: { column: "d", by: "MONTH" } },
};
