/* Sums of products of ciphertexts and polynomials of weights, value by value, for homomorphic.c. Products are added in 128 bits and
 * reduced once, at the end.
 */
#include <string.h>

#include "lanes.h"

#define HALF_BITS 30 /* numbers are multiplied in two halves */
#define HALF (((uint64_t)1 << HALF_BITS) - 1)
#define ROUND 16     /* so many products of halves fit into 64 bits together */
#define ROUNDS 15    /* and so many rounds of products into 128, with a residue */
#define FEW 2        /* so many are read side by side */
#define BLOCK 128    /* values whose sums stay in the first cache */
#define GROUP 4      /* of them side by side */

typedef struct {
    size_t degree, primes, count;
    const uint64_t *inputs;  /* [ciphertext, polynomial (2), prime, value] */
    const uint64_t *weights; /* [polynomial, prime, value] */
    const uint32_t *terms;   /* of each sum */
    const uint32_t *pairs;   /* [term, 2]: ciphertext, polynomial of weights; the sums one after the other */
    const uint64_t *moduli;
    uint64_t *out; /* [sum, polynomial (2), prime, value] */
} Sums;

/* The sums of a block for one prime, of both polynomials. Of the products (a_1 2^30 + a_0) (b_1 2^30 + b_0) since they were last
 * collected the four parts, each summed up by itself; of those before the low and high halves of parts, see `value_of`. What belongs
 * to a few values lies side by side: lines of a power of two would meet the factors' in one place of the cache. */
typedef struct {
    uint64_t parts[2][4][GROUP], halves[2][6][GROUP];
} Group;
typedef struct {
    Group groups[BLOCK / GROUP];
} Block;

/* Where the factors of a few products lie, of the ciphertexts both polynomials; and the largest residue. */
typedef struct {
    const uint64_t *inputs[2][FEW], *weights[FEW];
    uint64_t largest;
    size_t terms;
} Factors;

/* Add products at values [first, count), one by one. Return all bits of the weights, and of what they lack to the largest: of a
 * weight that is no residue one of the two has more than MOST_BITS. */
static uint64_t add_singly(const Factors *factors, Block *block, size_t first, size_t count) {
    uint64_t bits = 0;
    for (size_t t = 0; t < factors->terms; t++) {
        for (size_t half = 0; half < 2; half++) {
            for (size_t i = first; i < count; i++) {
                const uint64_t a = factors->inputs[half][t][i], b = factors->weights[t][i];
                uint64_t(*parts)[GROUP] = block->groups[i / GROUP].parts[half];
                bits |= b | (factors->largest - b);
                parts[0][i % GROUP] += (a & HALF) * (b & HALF);
                parts[1][i % GROUP] += (a >> HALF_BITS) * (b & HALF);
                parts[2][i % GROUP] += (a & HALF) * (b >> HALF_BITS);
                parts[3][i % GROUP] += (a >> HALF_BITS) * (b >> HALF_BITS);
            }
        }
    }
    return bits;
}

#ifdef LANES
/* The same for all values; `terms` is a constant to the compiler. */
TARGET static inline __attribute__((always_inline)) uint64_t add_vectors(const Factors *factors, Block *block, size_t count, size_t terms) {
    Vector bits = {0};
    uint64_t all = add_singly(factors, block, count - count % LANES, count);
    for (size_t i = 0; i + LANES <= count; i += LANES) {
        Vector parts[2][4];
        for (size_t half = 0; half < 2; half++) {
            for (size_t k = 0; k < 4; k++) {
                parts[half][k] = LOAD(&block->groups[i / GROUP].parts[half][k][i % GROUP]);
            }
        }
        for (size_t t = 0; t < terms; t++) {
            __builtin_prefetch((const void *)((uintptr_t)(factors->weights[t] + i) + BLOCK * sizeof(uint64_t)));
            const Vector b = LOAD(factors->weights[t] + i), b_low = b & HALF, b_high = b >> HALF_BITS;
            bits |= b | (factors->largest - b);
            for (size_t half = 0; half < 2; half++) {
                const Vector a = LOAD(factors->inputs[half][t] + i), a_low = a & HALF, a_high = a >> HALF_BITS;
                parts[half][0] += TIMES(a_low, b_low);
                parts[half][1] += TIMES(a_high, b_low);
                parts[half][2] += TIMES(a_low, b_high);
                parts[half][3] += TIMES(a_high, b_high);
            }
        }
        for (size_t half = 0; half < 2; half++) {
            for (size_t k = 0; k < 4; k++) {
                STORE(&block->groups[i / GROUP].parts[half][k][i % GROUP], parts[half][k]);
            }
        }
    }
    for (size_t lane = 0; lane < LANES; lane++) {
        all |= bits[lane];
    }
    return all;
}

TARGET static uint64_t add_few(const Factors *factors, Block *block, size_t count) {
    return add_vectors(factors, block, count, FEW);
}

TARGET static uint64_t add_fewer(const Factors *factors, Block *block, size_t count) {
    return add_vectors(factors, block, count, factors->terms);
}
#endif

static uint64_t add(const Factors *factors, Block *block, size_t count) {
#ifdef LANES
    if (with_vectors) {
        return factors->terms == FEW ? add_few(factors, block, count) : add_fewer(factors, block, count);
    }
#endif
    return add_singly(factors, block, 0, count);
}

/* Put the parts of at most ROUND products to those before, and begin anew. */
static void collect_singly(Block *block) {
    const uint64_t low = UINT32_MAX;
    for (size_t g = 0; g < BLOCK / GROUP; g++) {
        for (size_t half = 0; half < 2; half++) {
            uint64_t(*p)[GROUP] = block->groups[g].parts[half], (*h)[GROUP] = block->groups[g].halves[half];
            for (size_t i = 0; i < GROUP; i++) {
                h[0][i] += p[0][i] & low;
                h[1][i] += p[0][i] >> 32;
                h[2][i] += (p[1][i] & low) + (p[2][i] & low);
                h[3][i] += (p[1][i] >> 32) + (p[2][i] >> 32);
                h[4][i] += p[3][i] & low;
                h[5][i] += p[3][i] >> 32;
                p[0][i] = p[1][i] = p[2][i] = p[3][i] = 0;
            }
        }
    }
}

#ifdef LANES
TARGET static void collect_vectors(Block *block) {
    const uint64_t low = UINT32_MAX;
    for (size_t g = 0; g < BLOCK / GROUP; g++) {
        for (size_t half = 0; half < 2; half++) {
            for (size_t i = 0; i < GROUP; i += LANES) {
                uint64_t *p = &block->groups[g].parts[half][0][i], *h = &block->groups[g].halves[half][0][i];
                const Vector a = LOAD(p), b = LOAD(p + GROUP), c = LOAD(p + 2 * GROUP), d = LOAD(p + 3 * GROUP);
                STORE(h, LOAD(h) + (a & low));
                STORE(h + GROUP, LOAD(h + GROUP) + (a >> 32));
                STORE(h + 2 * GROUP, LOAD(h + 2 * GROUP) + (b & low) + (c & low));
                STORE(h + 3 * GROUP, LOAD(h + 3 * GROUP) + (b >> 32) + (c >> 32));
                STORE(h + 4 * GROUP, LOAD(h + 4 * GROUP) + (d & low));
                STORE(h + 5 * GROUP, LOAD(h + 5 * GROUP) + (d >> 32));
                for (size_t k = 0; k < 4; k++) {
                    STORE(p + k * GROUP, (Vector){0});
                }
            }
        }
    }
}
#endif

static void collect(Block *block) {
#ifdef LANES
    if (with_vectors) {
        collect_vectors(block);
        return;
    }
#endif
    collect_singly(block);
}

/* What the halves of parts make together, modulo the prime: of at most ROUNDS rounds, and a residue. */
static inline uint64_t value_of(const Group *group, size_t half, size_t i, uint64_t p, Factor one, Factor upper) {
    const uint64_t(*h)[GROUP] = (const uint64_t(*)[GROUP])group->halves[half];
    const Wide sum = h[0][i] + ((Wide)h[1][i] << 32) + ((Wide)h[2][i] << HALF_BITS) + ((Wide)h[3][i] << (HALF_BITS + 32)) +
                     ((Wide)h[4][i] << 2 * HALF_BITS) + ((Wide)h[5][i] << (2 * HALF_BITS + 32));
    return less(less(times(one, (uint64_t)sum, p) + times(upper, (uint64_t)(sum >> 64), p), 2 * p), p);
}

static void values_singly(const Group *group, size_t half, uint64_t p, Factor one, Factor upper, uint64_t out[GROUP]) {
    for (size_t i = 0; i < GROUP; i++) {
        out[i] = value_of(group, half, i, p, one, upper);
    }
}

#if defined(__x86_64__)
/* The same of a group. The sum is put together of 32, 32 and 64 bits. */
TARGET static void values_vectors(const Group *group, size_t half, uint64_t prime, Factor one, Factor upper, uint64_t out[GROUP]) {
    const uint64_t(*h)[GROUP] = (const uint64_t(*)[GROUP])group->halves[half];
    const Vector p = prime - (Vector){0}, b = LOAD(h[2]), c = LOAD(h[3]), d = LOAD(h[4]);
    const Factors4 ones = factors_of(one.w - (Vector){0}, one.quotient - (Vector){0});
    const Factors4 uppers = factors_of(upper.w - (Vector){0}, upper.quotient - (Vector){0});
    const Vector low = LOAD(h[0]) + ((b & 3) << 30);
    const Vector middle = LOAD(h[1]) + (b >> 2) + ((c & 3) << 30) + ((d & 15) << 28) + (low >> 32);
    const Vector high = (c >> 2) + (d >> 4) + (LOAD(h[5]) << 28) + (middle >> 32);
    const Vector sum = times4(&ones, (low & UINT32_MAX) | middle << 32, p, p >> 32) + times4(&uppers, high, p, p >> 32);
    STORE(out, less4(less4(less4(sum, 4 * p), 2 * p), p));
}
#endif

static void values_of(const Group *group, size_t half, uint64_t p, Factor one, Factor upper, uint64_t out[GROUP]) {
#if defined(__x86_64__)
    if (with_vectors) {
        values_vectors(group, half, p, one, upper, out);
        return;
    }
#endif
    values_singly(group, half, p, one, upper, out);
}

/* Compute values [first, first + count) of one sum for one prime. Return bits as `add` does. */
static uint64_t sum_block(const Sums *s, const Prime *prime, size_t terms, const uint32_t *pairs, uint64_t *out, size_t place, size_t count) {
    const size_t polynomial = s->primes * s->degree;
    const Factor one = factor_of(1, prime->p), upper = factor_of(remainder_of(prime, 0, 1), prime->p);
    Block block;
    uint64_t bits = 0, values[GROUP];
    memset(&block, 0, sizeof block);
    for (size_t term = 0; term < terms; term += FEW) {
        Factors factors = {.largest = prime->p - 1, .terms = terms - term < FEW ? terms - term : FEW};
        for (size_t t = 0; t < factors.terms; t++) {
            const uint32_t *pair = pairs + 2 * (term + t);
            factors.inputs[0][t] = s->inputs + (size_t)pair[0] * 2 * polynomial + place;
            factors.inputs[1][t] = factors.inputs[0][t] + polynomial;
            factors.weights[t] = s->weights + pair[1] * polynomial + place;
        }
        bits |= add(&factors, &block, count);
        if ((term + FEW) % ROUND == 0) {
            collect(&block);
        }
        if ((term + FEW) % (ROUND * ROUNDS) == 0) { /* replace the halves by what they make */
            for (size_t g = 0; g < 2 * BLOCK / GROUP; g++) {
                uint64_t(*h)[GROUP] = block.groups[g / 2].halves[g % 2];
                values_of(&block.groups[g / 2], g % 2, prime->p, one, upper, values);
                memset(h, 0, sizeof block.groups[0].halves[0]);
                for (size_t i = 0; i < GROUP; i++) {
                    h[0][i] = values[i] & UINT32_MAX;
                    h[1][i] = values[i] >> 32;
                }
            }
        }
    }
    collect(&block);
    for (size_t half = 0; half < 2; half++) {
        for (size_t i = 0; i < count; i += GROUP) {
            values_of(&block.groups[i / GROUP], half, prime->p, one, upper, values);
            memcpy(out + half * polynomial + place + i, values, 8 * (count - i < GROUP ? count - i : GROUP));
        }
    }
    return bits;
}

/* Return whether all weights were residues. The sums take turns, so that they find the same inputs in the cache. */
static int sums(const Sums *s) {
    uint64_t bits = 0;
    for (size_t number = 0; number < s->primes; number++) {
        const Prime prime = prime_of(s->moduli[number]);
        for (size_t first = 0; first < s->degree; first += BLOCK) {
            const size_t count = s->degree - first < BLOCK ? s->degree - first : BLOCK;
            const uint32_t *pairs = s->pairs;
            for (size_t sum = 0; sum < s->count; pairs += 2 * s->terms[sum++]) {
                uint64_t *out = s->out + sum * 2 * s->primes * s->degree;
                bits |= sum_block(s, &prime, s->terms[sum], pairs, out, number * s->degree + first, count);
            }
        }
    }
    return bits >> MOST_BITS == 0;
}
