-- A few thousand plausible rows, the same at every run: no random(), no now().
-- pick(list, n) takes a list's element by a mixed-up n, so that neighbouring rows differ.

CREATE SCHEMA demo;

CREATE FUNCTION demo.mix(n int, salt int) RETURNS int LANGUAGE sql IMMUTABLE
    RETURN (((n::bigint * 2654435761 + salt::bigint * 40503) % 1000003) * 7919 % 999983)::int;

CREATE FUNCTION demo.pick(list text[], n int, salt int) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN list[1 + demo.mix(n, salt) % cardinality(list)];

CREATE FUNCTION demo.nombre(n int) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN demo.pick(ARRAY['María','José','Lucía','Andrés','Sofía','Ángel','Valentina','Íñigo','Camila','Martín','Renata','Joaquín',
                           'Belén','Óscar','Ximena','Raúl','Noemí','Tomás','Inés','Sebastián','Úrsula','Germán','Pilar','Álvaro'], n, 1)
        || ' ' || demo.pick(ARRAY['Muñoz','García','Peña','Núñez','Rodríguez','Ibáñez','Castaño','Gómez','Ordóñez','Zúñiga','Rojas',
                           'Cárdenas','Vélez','Pérez','Londoño','Sepúlveda','Quiñones','Araya','Fernández','Bermúdez'], n, 2);

CREATE FUNCTION demo.ciudad(n int) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN demo.pick(ARRAY['Bogotá','Medellín','Cali','Santiago','Valparaíso','Concepción','Quito','Cúcuta','Ibagué','Popayán','Ñuñoa','Lima'], n, 3);

CREATE FUNCTION demo.medio(n int) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN (ARRAY['nequi','Transferencia bancaria','transferencia','tarjeta de crédito','Tarjeta débito','efectivo','daviplata',NULL])[1 + demo.mix(n, 4) % 8];

INSERT INTO hogar_de_paso (nombre_hogar, tipo_hogar, nombre_contacto, correo, telefono, ciudad, pais, cupo_maximo, tarifa_diaria, desempeno, ultimo_contacto, notas)
SELECT 'Hogar ' || demo.pick(ARRAY['La Huella','Patitas','El Refugio','Los Álamos','Doña Inés','Cola Feliz','San Roque'], n, 5) || ' ' || n,
       demo.pick(ARRAY['casa','finca','guardería'], n, 6), demo.nombre(n + 7000), 'hogar' || n || '@ejemplo.org', '+57 300 ' || lpad((demo.mix(n, 7) % 10000000)::text, 7, '0'),
       demo.ciudad(n), demo.pick(ARRAY['Colombia','Chile','Ecuador'], n, 8), 2 + demo.mix(n, 9) % 15, 8000 + 500 * (demo.mix(n, 10) % 40),
       demo.pick(ARRAY['excelente','bueno','regular'], n, 11), date '2024-06-01' + demo.mix(n, 12) % 500, CASE WHEN n % 3 = 0 THEN 'Llamar antes de las 18:00; "no" recibe gatos' END
FROM generate_series(1, 24) AS n;

INSERT INTO proveedores (nombre_proveedor, tipo_proveedor, nit, nombre_contacto, correo, telefono, ciudad)
SELECT demo.pick(ARRAY['Veterinaria','Droguería','Agropecuaria','Clínica','Transportes'], n, 13) || ' ' || demo.pick(ARRAY['San Martín','El Cóndor','Güechica','La Niña','Ñandú','Andina'], n, 14) || ' ' || n,
       demo.pick(ARRAY['veterinaria','alimento','medicamentos','transporte'], n, 15), (900000000 + demo.mix(n, 16))::text || '-' || n % 10,
       demo.nombre(n + 9000), 'ventas' || n || '@proveedor.example', NULL, demo.ciudad(n + 50)
FROM generate_series(1, 60) AS n;

INSERT INTO donantes (donante, tipo_id, identificacion, correo, ciudad, tipo_donante, pais, canal_origen, consentimiento, notas, archivos, created_at, last_modified_at)
SELECT demo.nombre(n), demo.pick(ARRAY['CC','CE','NIT','pasaporte'], n, 17), (10000000 + demo.mix(n, 18) * 97)::text,
       CASE WHEN n % 11 <> 0 THEN 'donante' || n || '@correo.example' END, demo.ciudad(n + 100), demo.pick(ARRAY['persona natural','empresa','fundación'], n, 19),
       demo.pick(ARRAY['Colombia','Chile','Ecuador','España'], n, 20), demo.pick(ARRAY['instagram','página web','voz a voz','evento'], n, 21), n % 7 <> 0,
       CASE WHEN n % 13 = 0 THEN 'Prefiere que no la llamen' END, CASE WHEN n % 17 = 0 THEN '["cédula_' || n || '.pdf"]' END,
       timestamptz '2023-01-01 12:00+00' + n * interval '13 hours',
       -- What a poll by last_modified_at never sees or trips over: no date at all, and one in the future.
       CASE WHEN n % 19 = 0 THEN NULL WHEN n % 401 = 0 THEN timestamptz '2099-12-31 23:59:59+00' ELSE timestamptz '2024-01-01 12:00+00' + n * interval '7 hours' END
FROM generate_series(1, 1500) AS n;

INSERT INTO casos (nombre_caso, estado, fecha_ingreso, fecha_salida, veterinaria, diagnostico, archivo, id_hogar_de_paso, presupuesto_estimado, ciudad, created_at, last_modified_at)
SELECT demo.pick(ARRAY['Canela','Firulais','Luna','Simón','Ñoño','Pelusa','Rocky','Nieve','Tomás','Mía','Bruno','Trufa'], n, 22) || ' ' || n,
       demo.pick(ARRAY['abierto','en tratamiento','adoptado','cerrado'], n, 23), date '2023-01-01' + n * 2, CASE WHEN n % 3 = 0 THEN date '2023-02-01' + n * 2 END,
       demo.pick(ARRAY['Clínica Andina','Vet San Roque','Hospital Mascotas'], n, 24),
       demo.pick(ARRAY['fractura de fémur','desnutrición','sarna','parvovirus','cirugía ocular'], n, 25) || repeat('; control semanal sin novedades', demo.mix(n, 26) % 6),
       NULL, CASE WHEN n % 5 <> 0 THEN 1 + demo.mix(n, 27) % 24 END, 100000 + 2500.50 * (demo.mix(n, 28) % 400), demo.ciudad(n + 200),
       timestamp '2023-01-01 09:00' + n * interval '2 days', timestamp '2024-01-01 09:00' + n * interval '1 day'
FROM generate_series(1, 600) AS n;

INSERT INTO donaciones (id_donante, id_caso, fecha_donacion, monto, medio_pago, estado, comprobante, created_at, last_modified_at)
SELECT CASE WHEN n % 23 <> 0 THEN 1 + demo.mix(n, 29) % 1500 END, CASE WHEN n % 4 <> 0 THEN 1 + demo.mix(n, 30) % 600 END, date '2023-01-10' + demo.mix(n, 31) % 900,
       CASE WHEN n % 97 = 0 THEN -5000 ELSE 5000 + 1250.25 * (demo.mix(n, 32) % 300) END, demo.medio(n), demo.pick(ARRAY['aprobada','completada','pendiente','rechazada'], n, 33),
       'https://comprobantes.example/' || md5(n::text) || '.png', timestamp '2023-01-10 08:00' + n * interval '5 hours', timestamp '2024-01-10 08:00' + n * interval '3 hours'
FROM generate_series(1, 3600) AS n;

INSERT INTO gastos (nombre_gasto, fecha_pago, id_caso, medio_pago, monto, estado, comprobante, id_proveedor, created_at, last_modified_at)
SELECT demo.pick(ARRAY['consulta','cirugía','alimento','vacunas','transporte','radiografía'], n, 34), date '2023-02-01' + demo.mix(n, 35) % 900, 1 + demo.mix(n, 36) % 600,
       demo.medio(n + 500), 15000 + 999.99 * (demo.mix(n, 37) % 250), demo.pick(ARRAY['pagado','pendiente'], n, 38),
       'https://comprobantes.example/g' || md5(n::text) || '.png', 1 + demo.mix(n, 39) % 60, timestamp '2023-02-01 08:00' + n * interval '17 hours', NULL
FROM generate_series(1, 900) AS n;
