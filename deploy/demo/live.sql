-- One round of the foundation's day, numbered :n. Several transactions, as an application would write them.

-- New donors and donations, the newest corrected at once: two changes of one key in one transaction.
BEGIN;
INSERT INTO donantes (donante, tipo_id, identificacion, correo, ciudad, tipo_donante, pais, canal_origen, consentimiento, last_modified_at)
VALUES (demo.nombre(:n + 20000), 'CC', (70000000 + :n)::text, 'nueva' || :n || '@correo.example', demo.ciudad(:n), 'persona natural', 'Colombia', 'evento', true, now());
INSERT INTO donaciones (id_donante, id_caso, fecha_donacion, monto, medio_pago, estado)
SELECT currval('donantes_id_donante_seq'), 1 + demo.mix(:n * 10 + i, 40) % 600, current_date, 10000 + 100.01 * i, demo.medio(:n + i), 'pendiente' FROM generate_series(1, 5) AS i;
UPDATE donaciones SET monto = monto + 0.01, comprobante = 'https://comprobantes.example/r' || :n || '.png' WHERE id_donacion = currval('donaciones_id_donacion_seq');
COMMIT;

-- What was pending is approved; last_modified_at is forgotten, as it happens.
UPDATE donaciones SET estado = 'aprobada' WHERE estado = 'pendiente' AND id_donacion % 40 = :n % 40;
UPDATE casos SET estado = 'adoptado', fecha_salida = current_date, last_modified_at = now() WHERE id_caso = 1 + demo.mix(:n, 41) % 600;
UPDATE donantes SET ciudad = demo.ciudad(:n + 300), notas = NULL WHERE id_donante = 1 + demo.mix(:n, 42) % 1500;

-- Deletes, which no query by date can see.
DELETE FROM donaciones WHERE id_donacion % 500 = :n % 500;

-- A supplier arrives and is given another number: a change of the key.
INSERT INTO proveedores (nombre_proveedor, tipo_proveedor, ciudad) VALUES ('Proveedor nuevo ' || :n, 'alimento', demo.ciudad(:n));
UPDATE proveedores SET id_proveedor = id_proveedor + 100000 WHERE id_proveedor = currval('proveedores_id_proveedor_seq');

-- A mistake that is taken back: nothing of it may arrive.
BEGIN;
DELETE FROM gastos;
ROLLBACK;
