/* Half gates for one group of sixteen instances at a time, written once for vectors of one block (AES-NI, ARMv8) and of
 * four blocks (VAES with AVX-512). garbling.c includes this file for each of them, with these macros set:
 *
 *   NAME(x) TARGET V VBLOCKS      names, target attribute, vector type, blocks per vector
 *   VLOAD VSTORE VXOR VAND VZERO  on whole vectors; memory need not be aligned
 *   VADD VSUB VNUMBER             on the 64-bit halves of blocks; VNUMBER(n): n in each half
 *   VROWS(p, stride)              one vector from blocks that stand `stride` bytes apart
 *   VSIGMA VFIRST VROUND VLAST    on blocks; the last three as in aes128.h
 *   VLOWEST(v)                    all ones in the blocks whose lowest bit is 1
 *   VSPREAD(dr_block)             one block in all places
 *   VGET(p, n) VPUT(p, n, v)      numbers of n = 4 or 8 bytes side by side, to and from the low halves of blocks
 *
 * Sources: Zahur, Rosulek, Evans, "Two Halves Make a Whole", Eurocrypt 2015, figure 2 (AND) and section 3 (the evaluator's
 * half gate); terms of words: Ball, Malkin, Rosulek, "Garbling Gadgets", CCS 2016, the projection gate with one row
 * removed; the hash H(x, k) = AES_k(sigma(x)) xor sigma(x): Guo, Katz, Wang, Weng, Yu, CRYPTO 2020.
 *
 * Nothing branches on or indexes by a label, a colour or a permutation bit: choices are masks.
 */

/* Vectors of one operand per step; two operands are in flight together. */
#define FLIGHT 4
#define VBYTES (16 * VBLOCKS)
#define STEP_BYTES (FLIGHT * VBYTES)
/* Operations that hash one operand take two steps at once where a slot holds two. */
#define STEPS_AT_ONCE (2 * STEP_BYTES <= DR_SLOT_BYTES ? 2 : 1)

#define EACH_STEP for (size_t at = 0; at < DR_SLOT_BYTES; at += STEP_BYTES)
#define EACH_VECTOR                                                                                                             \
    DR_UNROLL(FLIGHT)                                                                                                           \
    for (size_t i = 0; i < FLIGHT; i++)

/* x[i] = AES_k(x[i]) xor x[i] and y[i] = AES_l(y[i]) xor y[i], for inputs that went through sigma. */
TARGET DR_INLINE void NAME(hash)(const dr_aes_key *k, V x[FLIGHT], const dr_aes_key *l, V y[FLIGHT]) {
    V p = VSPREAD(k->round[0]), q = VSPREAD(l->round[0]);
    V a0 = VFIRST(x[0], p), a1 = VFIRST(x[1], p), a2 = VFIRST(x[2], p), a3 = VFIRST(x[3], p);
    V b0 = VFIRST(y[0], q), b1 = VFIRST(y[1], q), b2 = VFIRST(y[2], q), b3 = VFIRST(y[3], q);
    DR_UNROLL(9)
    for (int r = 1; r < 10; r++) {
        p = VSPREAD(k->round[DR_KEY(r)]);
        a0 = VROUND(a0, p);
        a1 = VROUND(a1, p);
        a2 = VROUND(a2, p);
        a3 = VROUND(a3, p);
        q = VSPREAD(l->round[DR_KEY(r)]);
        b0 = VROUND(b0, q);
        b1 = VROUND(b1, q);
        b2 = VROUND(b2, q);
        b3 = VROUND(b3, q);
    }
    p = VSPREAD(k->round[9]);
    const V p_last = VSPREAD(k->round[10]);
    q = VSPREAD(l->round[9]);
    const V q_last = VSPREAD(l->round[10]);
    x[0] = VXOR(x[0], VLAST(a0, p, p_last));
    x[1] = VXOR(x[1], VLAST(a1, p, p_last));
    x[2] = VXOR(x[2], VLAST(a2, p, p_last));
    x[3] = VXOR(x[3], VLAST(a3, p, p_last));
    y[0] = VXOR(y[0], VLAST(b0, q, q_last));
    y[1] = VXOR(y[1], VLAST(b1, q, q_last));
    y[2] = VXOR(y[2], VLAST(b2, q, q_last));
    y[3] = VXOR(y[3], VLAST(b3, q, q_last));
}

/* The same for one operand. */
TARGET DR_INLINE void NAME(hash_one)(const dr_aes_key *k, V x[FLIGHT]) {
    V p = VSPREAD(k->round[0]);
    V a0 = VFIRST(x[0], p), a1 = VFIRST(x[1], p), a2 = VFIRST(x[2], p), a3 = VFIRST(x[3], p);
    DR_UNROLL(9)
    for (int r = 1; r < 10; r++) {
        p = VSPREAD(k->round[DR_KEY(r)]);
        a0 = VROUND(a0, p);
        a1 = VROUND(a1, p);
        a2 = VROUND(a2, p);
        a3 = VROUND(a3, p);
    }
    p = VSPREAD(k->round[9]);
    const V p_last = VSPREAD(k->round[10]);
    x[0] = VXOR(x[0], VLAST(a0, p, p_last));
    x[1] = VXOR(x[1], VLAST(a1, p, p_last));
    x[2] = VXOR(x[2], VLAST(a2, p, p_last));
    x[3] = VXOR(x[3], VLAST(a3, p, p_last));
}

TARGET DR_INLINE void NAME(hash_steps)(const dr_aes_key *k, V x[STEPS_AT_ONCE][FLIGHT]) {
    if (STEPS_AT_ONCE == 2) {
        NAME(hash)(k, x[0], k, x[STEPS_AT_ONCE - 1]);
    } else {
        NAME(hash_one)(k, x[0]);
    }
}

/* One column of labels into a slot; lanes that do not exist become zero. Whole vectors are put together in registers, because a
 * wide load soon after narrow stores to the same place waits for them. */
TARGET DR_INLINE void NAME(gather)(const uint8_t *labels, size_t wires, size_t column, size_t lanes, uint8_t *slot) {
    const uint8_t *p = labels + 16 * column;
    if (lanes == DR_LANES) {
        for (size_t i = 0; i < DR_LANES; i += VBLOCKS) {
            VSTORE(slot + 16 * i, VROWS(p + 16 * wires * i, 16 * wires));
        }
        return;
    }
    for (size_t i = 0; i < lanes; i++) {
        memcpy(slot + 16 * i, p + 16 * wires * i, 16);
    }
    memset(slot + 16 * lanes, 0, 16 * (DR_LANES - lanes));
}

/* The operations that are the same for both parties; 0 if `op` is none of them. */
TARGET DR_INLINE int NAME(moves)(const dr_job *job, const dr_op *op, uint8_t *slots, size_t first, size_t lanes) {
    const dr_program *program = job->program;
    uint8_t *d = slots + (size_t)op->d * DR_SLOT_BYTES;
    switch (op->code & 0xff) {
    case DR_OP_LOAD_GARBLER:
        NAME(gather)(job->garbler_labels + 16 * program->garbler_wires * first, program->garbler_wires, (size_t)op->a, lanes, d);
        return 1;
    case DR_OP_LOAD_EVALUATOR:
        NAME(gather)
        (job->evaluator_labels + 16 * program->evaluator_wires * first, program->evaluator_wires, (size_t)op->a, lanes, d);
        return 1;
    case DR_OP_XOR: {
        const uint8_t *a = slots + (size_t)op->a * DR_SLOT_BYTES, *a2 = slots + (size_t)op->a2 * DR_SLOT_BYTES;
        const uint8_t *b = slots + (size_t)op->b * DR_SLOT_BYTES, *b2 = slots + (size_t)op->b2 * DR_SLOT_BYTES;
        for (size_t at = 0; at < DR_SLOT_BYTES; at += VBYTES) {
            VSTORE(d + at, VXOR(VXOR(VLOAD(a + at), VLOAD(a2 + at)), VXOR(VLOAD(b + at), VLOAD(b2 + at))));
        }
        return 1;
    }
    default:
        return 0;
    }
}

/* The low 64 bits of the sums, reduced to the ring of each word. */
static inline void NAME(put_words)(const dr_job *job, const uint8_t *sums, size_t first, size_t lanes) {
    const dr_program *program = job->program;
    for (size_t i = 0; i < lanes; i++) {
        for (size_t w = 0; w < program->words; w++) {
            uint64_t v;
            memcpy(&v, sums + w * DR_SLOT_BYTES + 16 * i, 8);
            v &= dr_ring_mask(program->word_bits[w]);
            memcpy(job->words + 8 * ((first + i) * program->words + w), &v, 8);
        }
    }
}

TARGET static void NAME(garble_group)(const dr_job *job, const dr_scratch *scratch, size_t first, size_t lanes, uint8_t *table) {
    const dr_program *program = job->program;
    const dr_aes_key *key = scratch->keys;
    const V delta = VSPREAD(dr_load(job->delta));
    const V sigma_delta = VSIGMA(delta);
    uint8_t base[2][DR_SLOT_BYTES] = {{0}}, part[2 * DR_SLOT_BYTES];

    for (size_t w = 0; w < program->words; w++) {
        for (size_t at = 0; at < DR_SLOT_BYTES; at += VBYTES) {
            VSTORE(scratch->sums + w * DR_SLOT_BYTES + at, VNUMBER(0 - program->constants[w]));
        }
    }
    for (size_t n = 0; n < program->n_ops; n++) {
        const dr_op op = program->ops[n];
        if (NAME(moves)(job, &op, scratch->slots, first, lanes)) {
            continue;
        }
        const V flip_a = op.code & DR_INVERT_A ? delta : VZERO();
        const V flip_b = op.code & DR_INVERT_B ? delta : VZERO();
        /* Operands that an operation does not have are slot 0; operand a of OUTPUT and the terms has no second half. */
        const uint8_t *a = scratch->slots + (size_t)op.a * DR_SLOT_BYTES, *a2 = scratch->slots + (size_t)op.a2 * DR_SLOT_BYTES;
        const uint8_t *b = scratch->slots + (size_t)op.b * DR_SLOT_BYTES, *b2 = scratch->slots + (size_t)op.b2 * DR_SLOT_BYTES;
        const uint8_t *c = scratch->slots + (size_t)op.c * DR_SLOT_BYTES;
        /* Entries go straight to the tables where the group is whole, else through `part`. */
        const int whole = lanes == DR_LANES;
        uint8_t *entry = whole ? table : part;
        size_t entries = 0, entry_bytes = 16;

        switch (op.code & 0xff) {
        case DR_OP_AND: {
            uint8_t *d = scratch->slots + (size_t)op.d * DR_SLOT_BYTES;
            EACH_STEP {
                V a0[FLIGHT], b0[FLIGHT], x0[FLIGHT], x1[FLIGHT], y0[FLIGHT], y1[FLIGHT];
                EACH_VECTOR {
                    const size_t p = at + i * VBYTES;
                    a0[i] = VXOR(VXOR(VLOAD(a + p), VLOAD(a2 + p)), flip_a);
                    b0[i] = VXOR(VXOR(VLOAD(b + p), VLOAD(b2 + p)), flip_b);
                    x0[i] = VSIGMA(a0[i]);
                    x1[i] = VXOR(x0[i], sigma_delta);
                    y0[i] = VSIGMA(b0[i]);
                    y1[i] = VXOR(y0[i], sigma_delta);
                }
                NAME(hash)(key, x0, key, x1);
                NAME(hash)(key + 1, y0, key + 1, y1);
                EACH_VECTOR {
                    const size_t p = at + i * VBYTES;
                    const V pa = VLOWEST(a0[i]), pb = VLOWEST(b0[i]);
                    const V generator = VXOR(VXOR(x0[i], x1[i]), VAND(pb, delta));
                    const V evaluator = VXOR(VXOR(y0[i], y1[i]), a0[i]);
                    const V left = VXOR(x0[i], VAND(pa, generator));
                    const V right = VXOR(y0[i], VAND(pb, VXOR(evaluator, a0[i])));
                    VSTORE(entry + p, generator);
                    VSTORE(entry + DR_SLOT_BYTES + p, evaluator);
                    VSTORE(d + p, VXOR(VXOR(left, right), VLOAD(c + p)));
                }
            }
            key += 2;
            entries = 2;
            break;
        }
        case DR_OP_AND_KNOWN: {
            uint8_t *d = scratch->slots + (size_t)op.d * DR_SLOT_BYTES;
            EACH_STEP {
                V a0[FLIGHT], y0[FLIGHT], y1[FLIGHT];
                EACH_VECTOR {
                    const size_t p = at + i * VBYTES;
                    a0[i] = VXOR(VXOR(VLOAD(a + p), VLOAD(a2 + p)), flip_a);
                    y0[i] = VSIGMA(VXOR(VXOR(VLOAD(b + p), VLOAD(b2 + p)), flip_b));
                    y1[i] = VXOR(y0[i], sigma_delta);
                }
                NAME(hash)(key, y0, key, y1);
                EACH_VECTOR {
                    const size_t p = at + i * VBYTES;
                    VSTORE(entry + p, VXOR(VXOR(y0[i], y1[i]), a0[i]));
                    VSTORE(d + p, VXOR(y0[i], VLOAD(c + p)));
                }
            }
            key += 1;
            entries = 1;
            break;
        }
        case DR_OP_OUTPUT:
            for (size_t i = 0; i < lanes; i++) {
                const uint8_t inverted = op.code & DR_INVERT_A ? 1 : 0;
                job->colours[(first + i) * program->outputs + (size_t)op.d] = (uint8_t)((a[16 * i] & 1) ^ inverted);
            }
            break;
        case DR_OP_TERM: {
            uint8_t *sum = scratch->sums + (size_t)op.d * DR_SLOT_BYTES;
            const V weight = VNUMBER(program->weights[n]);
            entry_bytes = program->word_bits[op.d] <= 32 ? 4 : 8;
            EACH_STEP {
                V label[FLIGHT], x0[FLIGHT], x1[FLIGHT];
                EACH_VECTOR {
                    label[i] = VLOAD(a + at + i * VBYTES);
                    /* The label of colour 0, then the one of colour 1. */
                    x0[i] = VSIGMA(VXOR(label[i], VAND(VLOWEST(label[i]), delta)));
                    x1[i] = VXOR(x0[i], sigma_delta);
                }
                NAME(hash)(key, x0, key, x1);
                EACH_VECTOR {
                    const size_t p = at + i * VBYTES;
                    const V drop = VAND(VLOWEST(VXOR(label[i], flip_a)), weight); /* colour 0 is true: the weight is in */
                    const V change = VSUB(VSUB(weight, drop), drop);
                    VPUT(entry + p / 16 * entry_bytes, entry_bytes, VADD(VSUB(x0[i], x1[i]), change));
                    VSTORE(sum + p, VADD(VLOAD(sum + p), VSUB(x0[i], drop)));
                }
            }
            key += 1;
            entries = 1;
            break;
        }
        case DR_OP_SELECTED: {
            const V weight = VNUMBER(program->weights[n]);
            entry_bytes = program->word_bits[op.d] <= 32 ? 4 : 8;
            EACH_STEP {
                V x[4][FLIGHT], one[FLIGHT], chosen[FLIGHT];
                EACH_VECTOR {
                    const V bit = VLOAD(a + at + i * VBYTES), selector = VLOAD(b + at + i * VBYTES);
                    one[i] = VLOWEST(VXOR(bit, flip_a));
                    chosen[i] = VLOWEST(VXOR(selector, flip_b));
                    /* x[2 * colour of b + colour of a] = sigma(b) xor a. The four inputs differ by delta, sigma(delta) and
                     * their XOR sigma(sigma(delta)), three bijections of delta. */
                    x[0][i] = VXOR(VSIGMA(VXOR(selector, VAND(VLOWEST(selector), delta))),
                                   VXOR(bit, VAND(VLOWEST(bit), delta)));
                    x[1][i] = VXOR(x[0][i], delta);
                    x[2][i] = VXOR(x[0][i], sigma_delta);
                    x[3][i] = VXOR(x[1][i], sigma_delta);
                }
                NAME(hash)(key, x[0], key, x[1]);
                NAME(hash)(key, x[2], key, x[3]);
                EACH_VECTOR {
                    const size_t p = at + i * VBYTES;
                    uint8_t *const at_entry = entry + p / 16 * entry_bytes;
                    const V weight0 = VAND(chosen[i], weight), weight1 = VXOR(weight, weight0);
                    const V drop0 = VAND(one[i], weight0), drop1 = VAND(one[i], weight1);
                    const V change0 = VSUB(VSUB(weight0, drop0), drop0), change1 = VSUB(VSUB(weight1, drop1), drop1);
                    VPUT(at_entry, entry_bytes, VADD(VSUB(x[0][i], x[1][i]), change0));
                    VPUT(at_entry + DR_LANES * entry_bytes, entry_bytes, VADD(VSUB(x[2][i], x[3][i]), change1));
                    VSTORE(base[0] + p, VADD(VLOAD(base[0] + p), VSUB(x[0][i], drop0)));
                    VSTORE(base[1] + p, VADD(VLOAD(base[1] + p), VSUB(x[2][i], drop1)));
                }
            }
            key += 1;
            entries = 2;
            break;
        }
        case DR_OP_BASE: {
            uint8_t *sum = scratch->sums + (size_t)op.d * DR_SLOT_BYTES;
            entry_bytes = program->word_bits[op.d] <= 32 ? 4 : 8;
            for (size_t p = 0; p < DR_SLOT_BYTES; p += VBYTES) {
                const V base0 = VLOAD(base[0] + p);
                VPUT(entry + p / 16 * entry_bytes, entry_bytes, VSUB(base0, VLOAD(base[1] + p)));
                VSTORE(sum + p, VADD(VLOAD(sum + p), base0));
            }
            memset(base, 0, sizeof base);
            entries = 1;
            break;
        }
        case DR_OP_FACTOR: {
            /* No ciphertext: what the labels of false and true hash to decides the offset and the factor. */
            uint8_t *sum = scratch->sums + (size_t)op.d * DR_SLOT_BYTES, *factor = sum + DR_SLOT_BYTES;
            EACH_STEP {
                V x0[FLIGHT], x1[FLIGHT];
                EACH_VECTOR {
                    x0[i] = VSIGMA(VXOR(VLOAD(a + at + i * VBYTES), flip_a));
                    x1[i] = VXOR(x0[i], sigma_delta);
                }
                NAME(hash)(key, x0, key, x1);
                EACH_VECTOR {
                    const size_t p = at + i * VBYTES;
                    VSTORE(sum + p, VADD(VLOAD(sum + p), x0[i]));
                    VSTORE(factor + p, VADD(VLOAD(factor + p), VSUB(x1[i], x0[i])));
                }
            }
            key += 1;
            break;
        }
        default:
            break;
        }
        if (!whole) {
            for (size_t e = 0; e < entries; e++) {
                memcpy(table + e * lanes * entry_bytes, part + e * DR_LANES * entry_bytes, lanes * entry_bytes);
            }
        }
        table += entries * lanes * entry_bytes;
    }
    NAME(put_words)(job, scratch->sums, first, lanes);
}

TARGET static void NAME(evaluate_group)(const dr_job *job, const dr_scratch *scratch, size_t first, size_t lanes,
                                        const uint8_t *table) {
    const dr_program *program = job->program;
    const dr_aes_key *key = scratch->keys;
    uint8_t part[2 * DR_SLOT_BYTES];

    memset(scratch->sums, 0, program->words * DR_SLOT_BYTES);
    for (size_t n = 0; n < program->n_ops; n++) {
        const dr_op op = program->ops[n];
        if (NAME(moves)(job, &op, scratch->slots, first, lanes)) {
            continue;
        }
        const uint8_t *a = scratch->slots + (size_t)op.a * DR_SLOT_BYTES, *a2 = scratch->slots + (size_t)op.a2 * DR_SLOT_BYTES;
        const uint8_t *b = scratch->slots + (size_t)op.b * DR_SLOT_BYTES, *b2 = scratch->slots + (size_t)op.b2 * DR_SLOT_BYTES;
        const uint8_t *c = scratch->slots + (size_t)op.c * DR_SLOT_BYTES;
        const size_t entries = dr_entries(op.code & 0xff), entry_bytes = dr_entry_bytes(program, &op);
        /* Entries are read in place where the group is whole, else through a zeroed copy. */
        const uint8_t *entry = table;
        if (lanes != DR_LANES) {
            memset(part, 0, sizeof part);
            for (size_t e = 0; e < entries; e++) {
                memcpy(part + e * DR_LANES * entry_bytes, table + e * lanes * entry_bytes, lanes * entry_bytes);
            }
            entry = part;
        }
        table += entries * lanes * entry_bytes;

        switch (op.code & 0xff) {
        case DR_OP_AND: {
            uint8_t *d = scratch->slots + (size_t)op.d * DR_SLOT_BYTES;
            EACH_STEP {
                V la[FLIGHT], lb[FLIGHT], x[FLIGHT], y[FLIGHT];
                EACH_VECTOR {
                    const size_t p = at + i * VBYTES;
                    la[i] = VXOR(VLOAD(a + p), VLOAD(a2 + p));
                    lb[i] = VXOR(VLOAD(b + p), VLOAD(b2 + p));
                    x[i] = VSIGMA(la[i]);
                    y[i] = VSIGMA(lb[i]);
                }
                NAME(hash)(key, x, key + 1, y);
                EACH_VECTOR {
                    const size_t p = at + i * VBYTES;
                    const V left = VXOR(x[i], VAND(VLOWEST(la[i]), VLOAD(entry + p)));
                    const V right = VXOR(y[i], VAND(VLOWEST(lb[i]), VXOR(VLOAD(entry + DR_SLOT_BYTES + p), la[i])));
                    VSTORE(d + p, VXOR(VXOR(left, right), VLOAD(c + p)));
                }
            }
            key += 2;
            break;
        }
        case DR_OP_AND_KNOWN: {
            uint8_t *d = scratch->slots + (size_t)op.d * DR_SLOT_BYTES;
            const V flip = op.code & DR_INVERT_B ? VNUMBER(UINT64_MAX) : VZERO();
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEPS_AT_ONCE * STEP_BYTES) {
                V lb[STEPS_AT_ONCE][FLIGHT], y[STEPS_AT_ONCE][FLIGHT];
                DR_UNROLL(2)
                for (size_t j = 0; j < STEPS_AT_ONCE; j++) {
                    EACH_VECTOR {
                        const size_t p = at + j * STEP_BYTES + i * VBYTES;
                        lb[j][i] = VXOR(VLOAD(b + p), VLOAD(b2 + p));
                        y[j][i] = VSIGMA(lb[j][i]);
                    }
                }
                NAME(hash_steps)(key, y);
                DR_UNROLL(2)
                for (size_t j = 0; j < STEPS_AT_ONCE; j++) {
                    EACH_VECTOR {
                        const size_t p = at + j * STEP_BYTES + i * VBYTES;
                        const V bit = VXOR(VLOWEST(lb[j][i]), flip);
                        const V other = VXOR(VLOAD(entry + p), VXOR(VLOAD(a + p), VLOAD(a2 + p)));
                        VSTORE(d + p, VXOR(VXOR(y[j][i], VAND(bit, other)), VLOAD(c + p)));
                    }
                }
            }
            key += 1;
            break;
        }
        case DR_OP_OUTPUT:
            for (size_t i = 0; i < lanes; i++) {
                job->colours[(first + i) * program->outputs + (size_t)op.d] = a[16 * i] & 1;
            }
            break;
        case DR_OP_TERM:
        case DR_OP_SELECTED: {
            /* A term without a selector reads slot 0 for it: colour 0, so the first entry is taken, which is its only one. */
            const int selected = (op.code & 0xff) == DR_OP_SELECTED;
            uint8_t *sum = scratch->sums + (size_t)op.d * DR_SLOT_BYTES;
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEPS_AT_ONCE * STEP_BYTES) {
                V x[STEPS_AT_ONCE][FLIGHT];
                DR_UNROLL(2)
                for (size_t j = 0; j < STEPS_AT_ONCE; j++) {
                    EACH_VECTOR {
                        const size_t p = at + j * STEP_BYTES + i * VBYTES;
                        x[j][i] = selected ? VXOR(VSIGMA(VLOAD(b + p)), VLOAD(a + p)) : VSIGMA(VLOAD(a + p));
                    }
                }
                NAME(hash_steps)(key, x);
                DR_UNROLL(2)
                for (size_t j = 0; j < STEPS_AT_ONCE; j++) {
                    EACH_VECTOR {
                        const size_t p = at + j * STEP_BYTES + i * VBYTES;
                        V number = VGET(entry + p / 16 * entry_bytes, entry_bytes);
                        if (selected) {
                            const V second = VGET(entry + (DR_LANES + p / 16) * entry_bytes, entry_bytes);
                            number = VXOR(number, VAND(VLOWEST(VLOAD(b + p)), VXOR(number, second)));
                        }
                        number = VADD(x[j][i], VAND(VLOWEST(VLOAD(a + p)), number));
                        VSTORE(sum + p, VADD(VLOAD(sum + p), number));
                    }
                }
            }
            key += 1;
            break;
        }
        case DR_OP_BASE: {
            uint8_t *sum = scratch->sums + (size_t)op.d * DR_SLOT_BYTES;
            for (size_t p = 0; p < DR_SLOT_BYTES; p += VBYTES) {
                const V number = VGET(entry + p / 16 * entry_bytes, entry_bytes);
                VSTORE(sum + p, VADD(VLOAD(sum + p), VAND(VLOWEST(VLOAD(b + p)), number)));
            }
            break;
        }
        case DR_OP_FACTOR: {
            uint8_t *sum = scratch->sums + (size_t)op.d * DR_SLOT_BYTES;
            for (size_t at = 0; at < DR_SLOT_BYTES; at += STEPS_AT_ONCE * STEP_BYTES) {
                V x[STEPS_AT_ONCE][FLIGHT];
                DR_UNROLL(2)
                for (size_t j = 0; j < STEPS_AT_ONCE; j++) {
                    EACH_VECTOR { x[j][i] = VSIGMA(VLOAD(a + at + j * STEP_BYTES + i * VBYTES)); }
                }
                NAME(hash_steps)(key, x);
                DR_UNROLL(2)
                for (size_t j = 0; j < STEPS_AT_ONCE; j++) {
                    EACH_VECTOR {
                        const size_t p = at + j * STEP_BYTES + i * VBYTES;
                        VSTORE(sum + p, VADD(VLOAD(sum + p), x[j][i]));
                    }
                }
            }
            key += 1;
            break;
        }
        default:
            break;
        }
    }
    NAME(put_words)(job, scratch->sums, first, lanes);
}

TARGET static void NAME(run)(const dr_job *job, const dr_scratch *scratch) {
    const size_t table_bytes = job->program->table_bytes;
    for (size_t first = 0; first < job->instances; first += DR_LANES) {
        const size_t lanes = job->instances - first < DR_LANES ? job->instances - first : DR_LANES;
        if (first % DR_BLOCK == 0) {
            dr_expand_keys(job, job->first_block + (uint32_t)(first / DR_BLOCK), scratch->keys);
        }
        if (first + DR_LANES < job->instances) {
            dr_prefetch(job->garbler_labels, job->program->garbler_wires, first + DR_LANES, job->instances);
            dr_prefetch(job->evaluator_labels, job->program->evaluator_wires, first + DR_LANES, job->instances);
        }
        if (job->garbling) {
            NAME(garble_group)(job, scratch, first, lanes, job->tables_out + table_bytes * first);
        } else {
            NAME(evaluate_group)(job, scratch, first, lanes, job->tables_in + table_bytes * first);
        }
    }
}

#undef FLIGHT
#undef VBYTES
#undef STEP_BYTES
#undef STEPS_AT_ONCE
#undef EACH_STEP
#undef EACH_VECTOR
