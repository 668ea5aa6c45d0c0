/* What the builds of garbling_body.h (one block per vector; VAES with AVX-512) share: the program, the job, the layout.
 *
 * Layout. Instances are taken in groups of DR_LANES; DR_GROUPS groups make a block, and a block shares its AES keys.
 *   labels   [instances][wires of one party][16 bytes]
 *   tables   group after group; in a group, operation after operation; in an operation, entry after entry; in an entry one
 *            ciphertext per instance of the group. So both parties stream through the tables front to back.
 *   colours  [instances][output bits], one byte each;  words [instances][words], 64 bits each
 */
#ifndef DEEPREDUCE_GARBLING_H
#define DEEPREDUCE_GARBLING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "aes128.h"

/* The vectors of a step live in registers only when their short loops are unrolled and their helpers inlined, at any -O. */
#define DR_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define DR_UNROLL(n) DR_PRAGMA(clang loop unroll(full))
#else
#define DR_UNROLL(n) DR_PRAGMA(GCC unroll n)
#endif
#define DR_INLINE static inline __attribute__((always_inline))

enum {
    DR_OP_LOAD_GARBLER,
    DR_OP_LOAD_EVALUATOR,
    DR_OP_XOR,
    DR_OP_AND,
    DR_OP_AND_KNOWN,
    DR_OP_OUTPUT,
    DR_OP_TERM,
    DR_OP_SELECTED,
    DR_OP_BASE,
    DR_OP_FACTOR,
    DR_OPS
};

#define DR_INVERT_A 0x100
#define DR_INVERT_B 0x200

#define DR_LANES 16
#define DR_GROUPS 4
#define DR_BLOCK (DR_LANES * DR_GROUPS)
#define DR_SLOT_BYTES (16 * DR_LANES)
#define DR_PREFETCH_BYTES 16384

typedef struct {
    int32_t code, a, b, d, a2, b2, c;
} dr_op;

typedef struct {
    dr_op *ops;
    uint64_t *weights;   /* per operation */
    uint64_t *constants; /* per word */
    uint8_t *word_bits;  /* per word */
    size_t n_ops, slots, words, garbler_wires, evaluator_wires, outputs, hashes, table_bytes;
} dr_program;

typedef struct {
    const dr_program *program;
    size_t instances;
    int garbling;                    /* else evaluating */
    uint32_t first_block;
    uint8_t key_base[16];
    uint8_t delta[16];               /* garbler only */
    const uint8_t *garbler_labels;   /* zero labels when garbling, active labels when evaluating */
    const uint8_t *evaluator_labels;
    uint8_t *tables_out;             /* garbler */
    const uint8_t *tables_in;        /* evaluator */
    uint8_t *colours;                /* decoding bits when garbling, colour bits when evaluating */
    uint8_t *words;                  /* offsets when garbling, masked sums when evaluating; 64-bit numbers, maybe unaligned;
                                      * a word's factor stands behind it, 0 when evaluating */
} dr_job;

/* Working memory of one call: aligned to 64 bytes, wiped by the caller. */
typedef struct {
    uint8_t *slots;                  /* [slots][DR_SLOT_BYTES], slot 0 all zero */
    void *keys;                      /* [hashes] expanded keys */
    uint8_t *sums;                   /* [words][DR_SLOT_BYTES], a sum in the low half of each block */
} dr_scratch;

/* Ciphertexts that an operation has in the tables, per instance. */
static inline size_t dr_entries(int kind) {
    switch (kind) {
    case DR_OP_AND:
    case DR_OP_SELECTED:
        return 2;
    case DR_OP_AND_KNOWN:
    case DR_OP_TERM:
    case DR_OP_BASE:
        return 1;
    default:
        return 0;
    }
}

/* Keys that an operation uses. */
static inline size_t dr_hashes(int kind) {
    switch (kind) {
    case DR_OP_AND:
        return 2;
    case DR_OP_AND_KNOWN:
    case DR_OP_TERM:
    case DR_OP_SELECTED:
    case DR_OP_FACTOR:
        return 1;
    default:
        return 0;
    }
}

static inline int dr_is_word(int kind) {
    return kind == DR_OP_TERM || kind == DR_OP_SELECTED || kind == DR_OP_BASE || kind == DR_OP_FACTOR;
}

/* Bytes of one ciphertext of an operation: a label, or a number of its word's ring. */
static inline size_t dr_entry_bytes(const dr_program *program, const dr_op *op) {
    return !dr_is_word(op->code & 0xff) ? 16 : program->word_bits[op->d] <= 32 ? 4 : 8;
}

static inline uint64_t dr_ring_mask(unsigned bits) {
    return bits >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << bits) - 1;
}

#if DR_BLOCKS
/* All keys of one block of instances: base xor (hash, block) in bytes 0 to 7. Never the same twice under one base. */
DR_TARGET_AES static inline void dr_expand_keys(const dr_job *job, uint32_t block, dr_aes_key *keys) {
    for (size_t h = 0; h < job->program->hashes; h++) {
        uint8_t key[16];
        uint64_t low;
        memcpy(key, job->key_base, 16);
        memcpy(&low, key, 8);
        low ^= (uint64_t)h | (uint64_t)block << 32;
        memcpy(key, &low, 8);
        dr_aes_expand(key, &keys[h]);
    }
}

/* Ask for the labels of the next group while this one is worked on: sixteen rows at a stride are no stream to the processor. */
static inline void dr_prefetch(const uint8_t *labels, size_t wires, size_t first, size_t instances) {
    const size_t lanes = instances - first < DR_LANES ? instances - first : DR_LANES;
    size_t bytes = 16 * wires * lanes;
    if (bytes > DR_PREFETCH_BYTES) {
        bytes = DR_PREFETCH_BYTES;
    }
    for (size_t at = 0; at < bytes; at += 64) {
        __builtin_prefetch(labels + 16 * wires * first + at);
    }
}
#endif

#endif /* DEEPREDUCE_GARBLING_H */
