// The one file to change: what silver makes of each table. Here: the tables of an animal shelter's foundation.
//
// A table that is not named here is merged as it is. For a table:
//   description      shown in BigQuery
//   soft_delete      true: rows that the source deleted stay, with `_deleted`
//   partition        { column, by: "DAY" | "MONTH" | "YEAR" } for a date or a timestamp; { column, start, end, interval } for an INT64;
//                    null for none. Without it: by ranges of the key if it is an INT64, because that is what a merge can prune by
//   flags            BOOL columns computed from the row's cleaned cells: a row is flagged, never dropped, because a later change that
//                    leaves a large value out must find it
//   columns.<name>
//     description    shown in BigQuery; may name a column that is excluded at the source
//     clean          from the raw cell's SQL to the silver cell's, same type (of JSON, its text); not for columns of the
//                    key. It sees this one cell only
//     required       check: not NULL
//     references     check: { table, strict }, the column's value exists as that table's key
//     min            check: not below this
//     plausible_date check: from 2010 to tomorrow
//
// Every key is checked to be unique and not NULL. Strict checks stop gold; the others only warn.
// A changed rule applies to rows merged long ago too: the next merge fills the table anew, from its last copy on.

const lower = cell => `LOWER(TRIM(${cell}))`;

const paymentMethod = cell => `CASE
      WHEN ${cell} IS NULL THEN 'nequi'
      WHEN LOWER(${cell}) LIKE '%transfer%' THEN 'transferencia'
      WHEN LOWER(${cell}) LIKE '%tarjeta%' THEN 'tarjeta'
      ELSE ${lower(cell)} END`;

// The foundation's case and donor for whatever came without one.
const GENERAL = 541;
const orGeneral = cell => `COALESCE(${cell}, ${GENERAL})`;

const negative = { description: "monto is below zero: kept here, left out of gold.", when: "monto < 0" };

module.exports = {
  "public.donantes": {
    description: "Donors, as of the last merged cut.",
    columns: {
      id_donante: { description: "Key of the donor." },
      donante: { description: "Name of the donor, trimmed, in lower case.", clean: lower },
      tipo_id: { description: "Kind of identity document.", clean: lower },
      identificacion: { description: "Number of the identity document, as the source has it or hashed there." },
      correo: { description: "E-mail address, trimmed, in lower case.", clean: lower },
      ciudad: { description: "City, trimmed, in lower case.", clean: lower },
      tipo_donante: { description: "Kind of donor: person, company, foundation.", clean: lower },
      pais: { description: "Country, trimmed, in lower case.", clean: lower },
      canal_origen: { description: "How the donor came to the foundation.", clean: lower },
      consentimiento: { description: "Whether the donor agreed to be written to." },
      created_at: { description: "When the donor was entered." },
      last_modified_at: { description: "When the application last changed the row; not reliable, and not used." },
    },
  },

  "public.casos": {
    description: "Animals in the foundation's care, as of the last merged cut.",
    columns: {
      id_caso: { description: "Key of the case." },
      nombre_caso: { description: "Name of the animal, trimmed, in lower case.", clean: lower },
      estado: { description: "Where the case stands.", clean: lower },
      fecha_ingreso: { description: "Day of admission.", plausible_date: true },
      fecha_salida: { description: "Day of discharge; NULL while in care.", plausible_date: true },
      veterinaria: { description: "Clinic in charge.", clean: lower },
      diagnostico: { description: "Diagnosis, trimmed, in lower case.", clean: lower },
      archivo: { description: "Link to the case's file; links are kept as they are." },
      id_hogar_de_paso: { description: "Foster home, if any.", references: { table: "public.hogar_de_paso", strict: false } },
      presupuesto_estimado: { description: "Estimated cost of the case.", min: 0 },
      ciudad: { description: "City, trimmed, in lower case.", clean: lower },
      created_at: { description: "When the case was entered (local time of the application)." },
      last_modified_at: { description: "When the application last changed the row; not reliable, and not used." },
    },
  },

  "public.donaciones": {
    description: "Donations in any state, as of the last merged cut.",
    flags: { monto_negativo: negative },
    columns: {
      id_donacion: { description: "Key of the donation." },
      id_donante: { description: "Donor; 541 where the source has none.", clean: orGeneral, references: { table: "public.donantes", strict: true } },
      id_caso: { description: "Case that the donation is for; 541 where the source has none.", clean: orGeneral, references: { table: "public.casos", strict: true } },
      fecha_donacion: { description: "Day of the donation.", plausible_date: true },
      monto: { description: "Amount, exact.", min: 0 },
      medio_pago: { description: "Payment method: nequi where the source has none, transferencia and tarjeta in all their spellings.", clean: paymentMethod },
      estado: { description: "State of the donation, trimmed, in lower case.", clean: lower },
      comprobante: { description: "Link to the receipt; links are kept as they are." },
      created_at: { description: "When the donation was entered (local time of the application)." },
      last_modified_at: { description: "When the application last changed the row; not reliable, and not used." },
    },
  },

  "public.gastos": {
    description: "Expenses in any state, as of the last merged cut.",
    flags: { monto_negativo: negative },
    columns: {
      id_gasto: { description: "Key of the expense." },
      nombre_gasto: { description: "What was paid for, trimmed, in lower case.", clean: lower },
      fecha_pago: { description: "Day of payment.", plausible_date: true },
      id_caso: { description: "Case that the expense is for; 541 where the source has none.", clean: orGeneral, references: { table: "public.casos", strict: true } },
      medio_pago: { description: "Payment method: nequi where the source has none, transferencia and tarjeta in all their spellings.", clean: paymentMethod },
      monto: { description: "Amount, exact.", min: 0 },
      estado: { description: "State of the expense, trimmed, in lower case.", clean: lower },
      comprobante: { description: "Link to the receipt; links are kept as they are." },
      // Catalogues stand at their own time, so a supplier may be a day younger than its catalogue: a warning, not a stop.
      id_proveedor: { description: "Supplier, if any.", references: { table: "public.proveedores", strict: false } },
      created_at: { description: "When the expense was entered (local time of the application)." },
      last_modified_at: { description: "When the application last changed the row; not reliable, and not used." },
    },
  },

  "public.proveedores": {
    description: "Suppliers, as of the catalogue's last copy.",
    columns: {
      id_proveedor: { description: "Key of the supplier." },
      nombre_proveedor: { description: "Name, trimmed, in lower case.", clean: lower },
      tipo_proveedor: { description: "Kind of supplier.", clean: lower },
      nit: { description: "Tax number." },
      nombre_contacto: { description: "Contact, trimmed, in lower case.", clean: lower },
      correo: { description: "E-mail address, trimmed, in lower case.", clean: lower },
      telefono: { description: "Telephone." },
      ciudad: { description: "City, trimmed, in lower case.", clean: lower },
    },
  },

  "public.hogar_de_paso": {
    description: "Foster homes, as of the catalogue's last copy.",
    columns: {
      id_hogar_de_paso: { description: "Key of the foster home." },
      nombre_hogar: { description: "Name, trimmed, in lower case.", clean: lower },
      tipo_hogar: { description: "Kind of home.", clean: lower },
      nombre_contacto: { description: "Contact, trimmed, in lower case.", clean: lower },
      correo: { description: "E-mail address, trimmed, in lower case.", clean: lower },
      telefono: { description: "Telephone." },
      ciudad: { description: "City, trimmed, in lower case.", clean: lower },
      pais: { description: "Country, trimmed, in lower case.", clean: lower },
      cupo_maximo: { description: "How many animals it takes.", min: 0 },
      tarifa_diaria: { description: "Price a day.", min: 0 },
      desempeno: { description: "How well the home does.", clean: lower },
      ultimo_contacto: { description: "Day of the last contact.", plausible_date: true },
    },
  },
};
