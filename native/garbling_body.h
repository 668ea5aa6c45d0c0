/* Half gates for one group of sixteen instances at a time, written once for vectors of one block (AES-NI) and of four blocks
 * (VAES with AVX-512). Included by garbling.c with these macros set:
 *   NAME(x)  TARGET  V  VBLOCKS  VLOAD(p)  VSTORE(p, v)  VXOR  VAND  VZERO  VSIGMA(v)  VLOWEST(v)  VSPREAD(m128i)  VENC  VENCLAST
 *
 * Source: Zahur, Rosulek, Evans, "Two Halves Make a Whole", Eurocrypt 2015, figure 2 (AND) and section 3 (one known input);
 * terms of words: Ball, Malkin, Rosulek, "Garbling Gadgets", CCS 2016, the projection gate with one row removed.
 * The hash is H(x, k) = AES_k(sigma(x)) xor sigma(x) of Guo, Katz, Wang, Weng, Yu, CRYPTO 2020.
 *
 * Nothing branches on or indexes by a label, a colour or a permutation bit: choices are masks.
 */

/* Vectors per step: four of the first operand and four of the second are in flight together. */
#define FLIGHT 4
#define STEP_BYTES (FLIGHT * VBLOCKS * 16)
/* Operations with one operand take two steps at once where a slot holds two. */
#define SECOND_STEP (2 * STEP_BYTES <= DR_SLOT_BYTES ? STEP_BYTES : 0)
#define STEPS_AT_ONCE (SECOND_STEP ? 2 : 1)

/* x[i] = AES_k(x[i]) xor x[i] and y[i] = AES_l(y[i]) xor y[i] for inputs that went through sigma. */
TARGET DR_INLINE void NAME(hash)(const dr_aes_key *k, V x[FLIGHT], const dr_aes_key *l, V y[FLIGHT]) {
    V p = VSPREAD(k->round[0]), q = VSPREAD(l->round[0]);
    V a0 = VXOR(x[0], p), a1 = VXOR(x[1], p), a2 = VXOR(x[2], p), a3 = VXOR(x[3], p);
    V b0 = VXOR(y[0], q), b1 = VXOR(y[1], q), b2 = VXOR(y[2], q), b3 = VXOR(y[3], q);
    DR_UNROLL(9)
    for (int r = 1; r < 10; r++) {
        p = VSPREAD(k->round[r]);
        a0 = VENC(a0, p);
        a1 = VENC(a1, p);
        a2 = VENC(a2, p);
        a3 = VENC(a3, p);
        q = VSPREAD(l->round[r]);
        b0 = VENC(b0, q);
        b1 = VENC(b1, q);
        b2 = VENC(b2, q);
        b3 = VENC(b3, q);
    }
    p = VSPREAD(k->round[10]);
    q = VSPREAD(l->round[10]);
    x[0] = VXOR(x[0], VENCLAST(a0, p));
    x[1] = VXOR(x[1], VENCLAST(a1, p));
    x[2] = VXOR(x[2], VENCLAST(a2, p));
    x[3] = VXOR(x[3], VENCLAST(a3, p));
    y[0] = VXOR(y[0], VENCLAST(b0, q));
    y[1] = VXOR(y[1], VENCLAST(b1, q));
    y[2] = VXOR(y[2], VENCLAST(b2, q));
    y[3] = VXOR(y[3], VENCLAST(b3, q));
}

/* The same for one operand: the only one in flight where a step is a whole slot. */
TARGET DR_INLINE void NAME(hash_one)(const dr_aes_key *k, V x[FLIGHT]) {
    V p = VSPREAD(k->round[0]);
    V a0 = VXOR(x[0], p), a1 = VXOR(x[1], p), a2 = VXOR(x[2], p), a3 = VXOR(x[3], p);
    DR_UNROLL(9)
    for (int r = 1; r < 10; r++) {
        p = VSPREAD(k->round[r]);
        a0 = VENC(a0, p);
        a1 = VENC(a1, p);
        a2 = VENC(a2, p);
        a3 = VENC(a3, p);
    }
    p = VSPREAD(k->round[10]);
    x[0] = VXOR(x[0], VENCLAST(a0, p));
    x[1] = VXOR(x[1], VENCLAST(a1, p));
    x[2] = VXOR(x[2], VENCLAST(a2, p));
    x[3] = VXOR(x[3], VENCLAST(a3, p));
}

TARGET DR_INLINE void NAME(hash_steps)(const dr_aes_key *k, V x[STEPS_AT_ONCE][FLIGHT]) {
    if (STEPS_AT_ONCE == 2) {
        NAME(hash)(k, x[0], k, x[STEPS_AT_ONCE - 1]);
    } else {
        NAME(hash_one)(k, x[0]);
    }
}

TARGET DR_INLINE void NAME(load)(const uint8_t *p, V x[FLIGHT]) {
    DR_UNROLL(FLIGHT)
    for (int i = 0; i < FLIGHT; i++) {
        x[i] = VLOAD(p + (size_t)i * 16 * VBLOCKS);
    }
}

TARGET DR_INLINE void NAME(store)(uint8_t *p, const V x[FLIGHT]) {
    DR_UNROLL(FLIGHT)
    for (int i = 0; i < FLIGHT; i++) {
        VSTORE(p + (size_t)i * 16 * VBLOCKS, x[i]);
    }
}

/* The low 64 bits of every block of a step, for the sums of words. */
TARGET DR_INLINE void NAME(pads)(const V x[FLIGHT], uint64_t *out) {
    uint8_t bytes[STEP_BYTES];
    NAME(store)(bytes, x);
    for (int i = 0; i < FLIGHT * VBLOCKS; i++) {
        memcpy(&out[i], bytes + 16 * i, 8);
    }
}

/* One column of labels into a slot; lanes that do not exist become zero. */
TARGET DR_INLINE void NAME(gather)(const uint8_t *labels, size_t wires, size_t column, size_t lanes, uint8_t *slot) {
    const uint8_t *p = labels + 16 * column;
    size_t i = 0;
    for (; i < lanes; i++) {
        memcpy(slot + 16 * i, p + 16 * wires * i, 16);
    }
    memset(slot + 16 * i, 0, 16 * (DR_LANES - i));
}

/* All ones in each lane whose label has colour 1. */
static inline void NAME(colours)(const uint8_t *slot, uint64_t flip, uint64_t out[DR_LANES]) {
    for (int i = 0; i < DR_LANES; i++) {
        out[i] = (uint64_t)0 - ((uint64_t)(slot[16 * i] & 1) ^ flip);
    }
}

static inline void NAME(put_entry)(uint8_t *to, size_t entry_bytes, size_t lanes, const uint64_t values[DR_LANES]) {
    for (size_t i = 0; i < lanes; i++) {
        if (entry_bytes == 4) {
            uint32_t v = (uint32_t)values[i];
            memcpy(to + 4 * i, &v, 4);
        } else {
            memcpy(to + 8 * i, &values[i], 8);
        }
    }
}

static inline void NAME(get_entry)(const uint8_t *from, size_t entry_bytes, size_t lanes, uint64_t values[DR_LANES]) {
    for (size_t i = 0; i < DR_LANES; i++) {
        values[i] = 0;
    }
    for (size_t i = 0; i < lanes; i++) {
        if (entry_bytes == 4) {
            uint32_t v;
            memcpy(&v, from + 4 * i, 4);
            values[i] = v;
        } else {
            memcpy(&values[i], from + 8 * i, 8);
        }
    }
}

TARGET static void NAME(garble_group)(const dr_job *job, const dr_scratch *scratch, size_t first, size_t lanes, uint8_t *table) {
    const dr_program *program = job->program;
    const dr_aes_key *key = scratch->keys;
    const V delta = VSPREAD(_mm_loadu_si128((const __m128i *)(const void *)job->delta));
    const V sigma_delta = VSIGMA(delta);
    uint64_t base[2][DR_LANES] = {{0}};
    uint8_t half[2][DR_SLOT_BYTES];

    for (size_t w = 0; w < program->words; w++) {
        for (int i = 0; i < DR_LANES; i++) {
            scratch->sums[w * DR_LANES + (size_t)i] = 0 - program->constants[w];
        }
    }
    for (size_t n = 0; n < program->n_ops; n++) {
        const dr_op op = program->ops[n];
        const V flip_a = op.code & DR_INVERT_A ? delta : VZERO();
        const V flip_b = op.code & DR_INVERT_B ? delta : VZERO();
        /* Operand b of OUTPUT, TERM and the loads is 0, operand a of BASE and the loads a column: both name a slot that is not read. */
        const uint8_t *a = scratch->slots, *b = scratch->slots;
        uint8_t *d = scratch->slots;

        switch (op.code & 0xff) {
        case DR_OP_ZERO:
            memset(d + (size_t)op.d * DR_SLOT_BYTES, 0, DR_SLOT_BYTES);
            break;
        case DR_OP_LOAD_GARBLER:
            NAME(gather)(job->garbler_labels + 16 * program->garbler_wires * first, program->garbler_wires, (size_t)op.a, lanes,
                         d + (size_t)op.d * DR_SLOT_BYTES);
            break;
        case DR_OP_LOAD_EVALUATOR:
            NAME(gather)(job->evaluator_labels + 16 * program->evaluator_wires * first, program->evaluator_wires, (size_t)op.a,
                         lanes, d + (size_t)op.d * DR_SLOT_BYTES);
            break;
        case DR_OP_XOR:
            a += (size_t)op.a * DR_SLOT_BYTES;
            b += (size_t)op.b * DR_SLOT_BYTES;
            d += (size_t)op.d * DR_SLOT_BYTES;
            DR_UNROLL(8)
            for (size_t at = 0; at < DR_SLOT_BYTES; at += 16 * VBLOCKS) {
                VSTORE(d + at, VXOR(VLOAD(a + at), VLOAD(b + at)));
            }
            break;
        case DR_OP_AND:
            a += (size_t)op.a * DR_SLOT_BYTES;
            b += (size_t)op.b * DR_SLOT_BYTES;
            d += (size_t)op.d * DR_SLOT_BYTES;
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEP_BYTES) {
                V a0[FLIGHT], b0[FLIGHT], x0[FLIGHT], x1[FLIGHT], y0[FLIGHT], y1[FLIGHT];
                NAME(load)(a + at, a0);
                NAME(load)(b + at, b0);
                DR_UNROLL(FLIGHT)
                for (int i = 0; i < FLIGHT; i++) {
                    a0[i] = VXOR(a0[i], flip_a);
                    b0[i] = VXOR(b0[i], flip_b);
                    x0[i] = VSIGMA(a0[i]);
                    x1[i] = VXOR(x0[i], sigma_delta);
                    y0[i] = VSIGMA(b0[i]);
                    y1[i] = VXOR(y0[i], sigma_delta);
                }
                NAME(hash)(key, x0, key, x1);
                NAME(hash)(key + 1, y0, key + 1, y1);
                DR_UNROLL(FLIGHT)
                for (int i = 0; i < FLIGHT; i++) {
                    const V pa = VLOWEST(a0[i]), pb = VLOWEST(b0[i]);
                    const V generator = VXOR(VXOR(x0[i], x1[i]), VAND(pb, delta));
                    const V evaluator = VXOR(VXOR(y0[i], y1[i]), a0[i]);
                    const V left = VXOR(x0[i], VAND(pa, generator));
                    const V right = VXOR(y0[i], VAND(pb, VXOR(evaluator, a0[i])));
                    VSTORE(half[0] + at + (size_t)i * 16 * VBLOCKS, generator);
                    VSTORE(half[1] + at + (size_t)i * 16 * VBLOCKS, evaluator);
                    VSTORE(d + at + (size_t)i * 16 * VBLOCKS, VXOR(left, right));
                }
            }
            memcpy(table, half[0], 16 * lanes);
            memcpy(table + 16 * lanes, half[1], 16 * lanes);
            table += 32 * lanes;
            key += 2;
            break;
        case DR_OP_AND_KNOWN:
            a += (size_t)op.a * DR_SLOT_BYTES;
            b += (size_t)op.b * DR_SLOT_BYTES;
            d += (size_t)op.d * DR_SLOT_BYTES;
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEP_BYTES) {
                V a0[FLIGHT], y0[FLIGHT], y1[FLIGHT];
                NAME(load)(a + at, a0);
                NAME(load)(b + at, y0);
                DR_UNROLL(FLIGHT)
                for (int i = 0; i < FLIGHT; i++) {
                    a0[i] = VXOR(a0[i], flip_a);
                    y0[i] = VSIGMA(VXOR(y0[i], flip_b));
                    y1[i] = VXOR(y0[i], sigma_delta);
                }
                NAME(hash)(key, y0, key, y1);
                DR_UNROLL(FLIGHT)
                for (int i = 0; i < FLIGHT; i++) {
                    VSTORE(half[0] + at + (size_t)i * 16 * VBLOCKS, VXOR(VXOR(y0[i], y1[i]), a0[i]));
                }
                NAME(store)(d + at, y0);
            }
            memcpy(table, half[0], 16 * lanes);
            table += 16 * lanes;
            key += 1;
            break;
        case DR_OP_OUTPUT:
            a += (size_t)op.a * DR_SLOT_BYTES;
            for (size_t i = 0; i < lanes; i++) {
                job->colours[(first + i) * program->outputs + (size_t)op.d] =
                    (uint8_t)((a[16 * i] & 1) ^ (op.code & DR_INVERT_A ? 1 : 0));
            }
            break;
        case DR_OP_TERM: {
            uint64_t pad[2][DR_LANES], entry[DR_LANES], one[DR_LANES];
            uint64_t *sum = scratch->sums + (size_t)op.d * DR_LANES;
            const size_t bytes = program->word_bits[op.d] <= 32 ? 4 : 8;
            a += (size_t)op.a * DR_SLOT_BYTES;
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEP_BYTES) {
                V x0[FLIGHT], x1[FLIGHT];
                NAME(load)(a + at, x0);
                DR_UNROLL(FLIGHT)
                for (int i = 0; i < FLIGHT; i++) {
                    /* The label of colour 0, then of colour 1. */
                    x0[i] = VSIGMA(VXOR(x0[i], VAND(VLOWEST(x0[i]), delta)));
                    x1[i] = VXOR(x0[i], sigma_delta);
                }
                NAME(hash)(key, x0, key, x1);
                NAME(pads)(x0, pad[0] + at / 16);
                NAME(pads)(x1, pad[1] + at / 16);
            }
            NAME(colours)(a, op.code & DR_INVERT_A ? 1 : 0, one); /* colour 0 means true */
            for (int i = 0; i < DR_LANES; i++) {
                const uint64_t w = program->weights[n], drop = one[i] & w;
                entry[i] = pad[0][i] - pad[1][i] + w - 2 * drop;
                sum[i] += pad[0][i] - drop;
            }
            NAME(put_entry)(table, bytes, lanes, entry);
            table += bytes * lanes;
            key += 1;
            break;
        }
        case DR_OP_SELECTED: {
            uint64_t pad[4][DR_LANES], entry[DR_LANES], one[DR_LANES], chosen[DR_LANES];
            const size_t bytes = program->word_bits[op.d] <= 32 ? 4 : 8;
            a += (size_t)op.a * DR_SLOT_BYTES;
            b += (size_t)op.b * DR_SLOT_BYTES;
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEP_BYTES) {
                V x[4][FLIGHT];
                NAME(load)(a + at, x[0]);
                NAME(load)(b + at, x[2]);
                DR_UNROLL(FLIGHT)
                for (int i = 0; i < FLIGHT; i++) {
                    /* x[2 * colour of b + colour of a] = sigma(b) xor a: by sigma's properties the four are distinct
                     * linear images of delta apart. */
                    const V bit = VXOR(x[0][i], VAND(VLOWEST(x[0][i]), delta));
                    const V selector = VSIGMA(VXOR(x[2][i], VAND(VLOWEST(x[2][i]), delta)));
                    x[0][i] = VXOR(selector, bit);
                    x[1][i] = VXOR(x[0][i], delta);
                    x[2][i] = VXOR(x[0][i], sigma_delta);
                    x[3][i] = VXOR(x[1][i], sigma_delta);
                }
                NAME(hash)(key, x[0], key, x[1]);
                NAME(hash)(key, x[2], key, x[3]);
                for (int j = 0; j < 4; j++) {
                    NAME(pads)(x[j], pad[j] + at / 16);
                }
            }
            NAME(colours)(a, op.code & DR_INVERT_A ? 1 : 0, one);
            NAME(colours)(b, op.code & DR_INVERT_B ? 1 : 0, chosen);
            for (int c = 0; c < 2; c++) { /* the selector's colour */
                for (int i = 0; i < DR_LANES; i++) {
                    const uint64_t on = c ? ~chosen[i] : chosen[i];
                    const uint64_t w = on & program->weights[n], drop = one[i] & w;
                    entry[i] = pad[2 * c][i] - pad[2 * c + 1][i] + w - 2 * drop;
                    base[c][i] += pad[2 * c][i] - drop;
                }
                NAME(put_entry)(table, bytes, lanes, entry);
                table += bytes * lanes;
            }
            key += 1;
            break;
        }
        case DR_OP_BASE: {
            uint64_t entry[DR_LANES];
            uint64_t *sum = scratch->sums + (size_t)op.d * DR_LANES;
            const size_t bytes = program->word_bits[op.d] <= 32 ? 4 : 8;
            for (int i = 0; i < DR_LANES; i++) {
                entry[i] = base[0][i] - base[1][i];
                sum[i] += base[0][i];
                base[0][i] = base[1][i] = 0;
            }
            NAME(put_entry)(table, bytes, lanes, entry);
            table += bytes * lanes;
            break;
        }
        default:
            break;
        }
    }
    for (size_t i = 0; i < lanes; i++) {
        for (size_t w = 0; w < program->words; w++) {
            const uint64_t v = scratch->sums[w * DR_LANES + i] & dr_ring_mask(program->word_bits[w]);
            memcpy(job->words + 8 * ((first + i) * program->words + w), &v, 8);
        }
    }
}

/* The tables of an entry: read in place for a whole group, through a zeroed copy for the last, partial one. */
static inline const uint8_t *NAME(entry)(const uint8_t *table, size_t lanes, uint8_t copy[DR_SLOT_BYTES]) {
    if (lanes == DR_LANES) {
        return table;
    }
    memset(copy, 0, DR_SLOT_BYTES);
    memcpy(copy, table, 16 * lanes);
    return copy;
}

TARGET static void NAME(evaluate_group)(const dr_job *job, const dr_scratch *scratch, size_t first, size_t lanes,
                                        const uint8_t *table) {
    const dr_program *program = job->program;
    const dr_aes_key *key = scratch->keys;
    uint8_t copy[2][DR_SLOT_BYTES];

    memset(scratch->sums, 0, sizeof(uint64_t) * DR_LANES * program->words);
    for (size_t n = 0; n < program->n_ops; n++) {
        const dr_op op = program->ops[n];
        const uint8_t *a = scratch->slots, *b = scratch->slots;
        uint8_t *d = scratch->slots;

        switch (op.code & 0xff) {
        case DR_OP_ZERO:
            memset(d + (size_t)op.d * DR_SLOT_BYTES, 0, DR_SLOT_BYTES);
            break;
        case DR_OP_LOAD_GARBLER:
            NAME(gather)(job->garbler_labels + 16 * program->garbler_wires * first, program->garbler_wires, (size_t)op.a, lanes,
                         d + (size_t)op.d * DR_SLOT_BYTES);
            break;
        case DR_OP_LOAD_EVALUATOR:
            NAME(gather)(job->evaluator_labels + 16 * program->evaluator_wires * first, program->evaluator_wires, (size_t)op.a,
                         lanes, d + (size_t)op.d * DR_SLOT_BYTES);
            break;
        case DR_OP_XOR:
            a += (size_t)op.a * DR_SLOT_BYTES;
            b += (size_t)op.b * DR_SLOT_BYTES;
            d += (size_t)op.d * DR_SLOT_BYTES;
            DR_UNROLL(8)
            for (size_t at = 0; at < DR_SLOT_BYTES; at += 16 * VBLOCKS) {
                VSTORE(d + at, VXOR(VLOAD(a + at), VLOAD(b + at)));
            }
            break;
        case DR_OP_AND: {
            const uint8_t *generator = NAME(entry)(table, lanes, copy[0]);
            const uint8_t *evaluator = NAME(entry)(table + 16 * lanes, lanes, copy[1]);
            a += (size_t)op.a * DR_SLOT_BYTES;
            b += (size_t)op.b * DR_SLOT_BYTES;
            d += (size_t)op.d * DR_SLOT_BYTES;
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEP_BYTES) {
                V la[FLIGHT], lb[FLIGHT], x[FLIGHT], y[FLIGHT];
                NAME(load)(a + at, la);
                NAME(load)(b + at, lb);
                DR_UNROLL(FLIGHT)
                for (int i = 0; i < FLIGHT; i++) {
                    x[i] = VSIGMA(la[i]);
                    y[i] = VSIGMA(lb[i]);
                }
                NAME(hash)(key, x, key + 1, y);
                DR_UNROLL(FLIGHT)
                for (int i = 0; i < FLIGHT; i++) {
                    const size_t p = at + (size_t)i * 16 * VBLOCKS;
                    const V left = VXOR(x[i], VAND(VLOWEST(la[i]), VLOAD(generator + p)));
                    const V right = VXOR(y[i], VAND(VLOWEST(lb[i]), VXOR(VLOAD(evaluator + p), la[i])));
                    VSTORE(d + p, VXOR(left, right));
                }
            }
            table += 32 * lanes;
            key += 2;
            break;
        }
        case DR_OP_AND_KNOWN: {
            const uint8_t *entry = NAME(entry)(table, lanes, copy[0]);
            const V flip = op.code & DR_INVERT_B ? VLOWEST(VSPREAD(_mm_set_epi64x(0, 1))) : VZERO();
            a += (size_t)op.a * DR_SLOT_BYTES;
            b += (size_t)op.b * DR_SLOT_BYTES;
            d += (size_t)op.d * DR_SLOT_BYTES;
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEPS_AT_ONCE * STEP_BYTES) {
                V lb[STEPS_AT_ONCE][FLIGHT], y[STEPS_AT_ONCE][FLIGHT];
                DR_UNROLL(2)
                for (int j = 0; j < STEPS_AT_ONCE; j++) {
                    NAME(load)(b + at + (size_t)j * SECOND_STEP, lb[j]);
                    DR_UNROLL(FLIGHT)
                    for (int i = 0; i < FLIGHT; i++) {
                        y[j][i] = VSIGMA(lb[j][i]);
                    }
                }
                NAME(hash_steps)(key, y);
                DR_UNROLL(2)
                for (int j = 0; j < STEPS_AT_ONCE; j++) {
                    DR_UNROLL(FLIGHT)
                    for (int i = 0; i < FLIGHT; i++) {
                        const size_t p = at + (size_t)j * SECOND_STEP + (size_t)i * 16 * VBLOCKS;
                        const V bit = VXOR(VLOWEST(lb[j][i]), flip);
                        VSTORE(d + p, VXOR(y[j][i], VAND(bit, VXOR(VLOAD(entry + p), VLOAD(a + p)))));
                    }
                }
            }
            table += 16 * lanes;
            key += 1;
            break;
        }
        case DR_OP_OUTPUT:
            a += (size_t)op.a * DR_SLOT_BYTES;
            for (size_t i = 0; i < lanes; i++) {
                job->colours[(first + i) * program->outputs + (size_t)op.d] = a[16 * i] & 1;
            }
            break;
        case DR_OP_TERM:
        case DR_OP_SELECTED: {
            const int selected = (op.code & 0xff) == DR_OP_SELECTED;
            uint64_t pad[DR_LANES], entry[2][DR_LANES], colour[DR_LANES], selector[DR_LANES] = {0};
            uint64_t *sum = scratch->sums + (size_t)op.d * DR_LANES;
            const size_t bytes = program->word_bits[op.d] <= 32 ? 4 : 8;
            a += (size_t)op.a * DR_SLOT_BYTES;
            b += (size_t)op.b * DR_SLOT_BYTES;
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEPS_AT_ONCE * STEP_BYTES) {
                V x[STEPS_AT_ONCE][FLIGHT];
                DR_UNROLL(2)
                for (int j = 0; j < STEPS_AT_ONCE; j++) {
                    NAME(load)(a + at + (size_t)j * SECOND_STEP, x[j]);
                    DR_UNROLL(FLIGHT)
                    for (int i = 0; i < FLIGHT; i++) {
                        const size_t p = at + (size_t)j * SECOND_STEP + (size_t)i * 16 * VBLOCKS;
                        x[j][i] = selected ? VXOR(VSIGMA(VLOAD(b + p)), x[j][i]) : VSIGMA(x[j][i]);
                    }
                }
                NAME(hash_steps)(key, x);
                DR_UNROLL(2)
                for (int j = 0; j < STEPS_AT_ONCE; j++) {
                    NAME(pads)(x[j], pad + (at + (size_t)j * SECOND_STEP) / 16);
                }
            }
            NAME(colours)(a, 0, colour);
            NAME(get_entry)(table, bytes, lanes, entry[0]);
            table += bytes * lanes;
            if (selected) {
                NAME(colours)(b, 0, selector);
                NAME(get_entry)(table, bytes, lanes, entry[1]);
                table += bytes * lanes;
            } else {
                memset(entry[1], 0, sizeof entry[1]);
            }
            for (int i = 0; i < DR_LANES; i++) {
                sum[i] += pad[i] + (colour[i] & ((entry[0][i] & ~selector[i]) | (entry[1][i] & selector[i])));
            }
            key += 1;
            break;
        }
        case DR_OP_BASE: {
            uint64_t entry[DR_LANES], selector[DR_LANES];
            uint64_t *sum = scratch->sums + (size_t)op.d * DR_LANES;
            const size_t bytes = program->word_bits[op.d] <= 32 ? 4 : 8;
            b += (size_t)op.b * DR_SLOT_BYTES;
            NAME(colours)(b, 0, selector);
            NAME(get_entry)(table, bytes, lanes, entry);
            for (int i = 0; i < DR_LANES; i++) {
                sum[i] += selector[i] & entry[i];
            }
            table += bytes * lanes;
            break;
        }
        default:
            break;
        }
    }
    for (size_t i = 0; i < lanes; i++) {
        for (size_t w = 0; w < program->words; w++) {
            const uint64_t v = scratch->sums[w * DR_LANES + i] & dr_ring_mask(program->word_bits[w]);
            memcpy(job->words + 8 * ((first + i) * program->words + w), &v, 8);
        }
    }
}

/* Ask for the labels of the next group while this one is worked on: sixteen rows at a stride are no stream to the processor. */
TARGET static inline void NAME(prefetch)(const uint8_t *labels, size_t wires, size_t first, size_t instances) {
    const size_t lanes = instances - first < DR_LANES ? instances - first : DR_LANES;
    size_t bytes = 16 * wires * lanes;
    if (bytes > DR_PREFETCH_BYTES) {
        bytes = DR_PREFETCH_BYTES;
    }
    for (size_t at = 0; at < bytes; at += 64) {
        _mm_prefetch((const char *)(labels + 16 * wires * first + at), _MM_HINT_T0);
    }
}

TARGET static void NAME(run)(const dr_job *job, const dr_scratch *scratch) {
    const size_t table_bytes = job->program->table_bytes;
    for (size_t first = 0; first < job->instances; first += DR_LANES) {
        const size_t lanes = job->instances - first < DR_LANES ? job->instances - first : DR_LANES;
        if (first % DR_BLOCK == 0) {
            dr_expand_keys(job, job->first_block + (uint32_t)(first / DR_BLOCK), scratch->keys);
        }
        if (first + DR_LANES < job->instances) {
            NAME(prefetch)(job->garbler_labels, job->program->garbler_wires, first + DR_LANES, job->instances);
            NAME(prefetch)(job->evaluator_labels, job->program->evaluator_wires, first + DR_LANES, job->instances);
        }
        if (job->tables_out != NULL) {
            NAME(garble_group)(job, scratch, first, lanes, job->tables_out + table_bytes * first);
        } else {
            NAME(evaluate_group)(job, scratch, first, lanes, job->tables_in + table_bytes * first);
        }
    }
}

#undef FLIGHT
#undef STEP_BYTES
#undef SECOND_STEP
#undef STEPS_AT_ONCE
