/* Sums of ciphertexts times single weights, each at an exponent of its own, in coefficients, for homomorphic.c: where several images
 * share a ciphertext, its polynomials of weights have few coefficients that are not zero.
 *
 * X^e moves coefficient j to j + e, and what passes the degree comes back negated. So a polynomial is spread out once, with its last
 * `margin` coefficients, negated, in front; at any exponent up to the margin its product with X^e is then a piece of that.
 */
#include "lanes.h"

#define OUTPUTS 8            /* sums whose weights lie side by side */
#define TILE 128             /* coefficients whose inputs stay in the second cache */
#define AHEAD 16             /* so far ahead they are fetched: too many lines for the processor to follow by itself */
#define BIAS ((uint64_t)1 << 62) /* on which sums begin, so that they stay positive */
#define MOST_SUM (BIAS >> HALF_BITS) /* of the sizes of the weights of a run */

/* A residue in two words of 32 bits: its upper 30 bits above its lower ones. */
static inline uint64_t halved(uint64_t x) { return x >> HALF_BITS << 32 | (x & HALF); }

/* words [lines, degree] to out [lines, margin + degree] */
static void spread(const uint64_t *words, size_t lines, const uint64_t *moduli, size_t primes, size_t degree, size_t margin, uint64_t *out) {
    for (size_t line = 0; line < lines; line++, words += degree) {
        const uint64_t p = moduli[line % primes];
        for (size_t i = degree - margin; i < degree; i++) {
            *out++ = halved(words[i] ? p - words[i] : 0);
        }
        for (size_t i = 0; i < degree; i++) {
            *out++ = halved(words[i]);
        }
    }
}

typedef struct {
    size_t degree, primes, count, terms, margin;
    const uint64_t *inputs;  /* [ciphertext, polynomial (2), prime, margin + degree], spread out */
    const uint64_t *offsets; /* of each term where its inputs begin, behind those of its line */
    const int32_t *weights;  /* [count / OUTPUTS, term, OUTPUTS] */
    const uint64_t *moduli;
    uint64_t *out; /* [count, polynomial (2), prime, degree] */
} Taps;

/* What makes a sum's two halves one residue: 2^0, 2^30, and what undoes that BIAS was added to each. */
typedef struct {
    uint64_t p, rest;
    Factor one, upper;
} Join;

static Join join_of(const Prime *prime) {
    const uint64_t p = prime->p, bias = remainder_of(prime, BIAS, 0), upper = remainder_of(prime, (uint64_t)1 << HALF_BITS, 0);
    const uint64_t both = less(bias + multiply(prime, bias, upper), p);
    const Join join = {p, both ? p - both : 0, factor_of(1, p), factor_of(upper, p)};
    return join;
}

/* Put a sum together and add it to `out`. */
static inline void join_one(const Join *join, uint64_t low, uint64_t high, uint64_t *out) {
    const uint64_t p = join->p, sum = less(times(join->one, low, p), p) + less(times(join->upper, high, p), p);
    *out = less(less(less(sum, p) + join->rest, p) + *out, p);
}

/* Add terms [first, last) to one coefficient of OUTPUTS sums. */
static void tap_singly(const Taps *t, const Join *join, const uint64_t *inputs, const int32_t *weights, size_t first, size_t last,
                       uint64_t *out, size_t stride) {
    for (size_t o = 0; o < OUTPUTS; o++) {
        uint64_t low = BIAS, high = BIAS;
        for (size_t k = first; k < last; k++) {
            const uint64_t x = inputs[t->offsets[k]];
            low += (uint64_t)((int64_t)(x & UINT32_MAX) * weights[k * OUTPUTS + o]);
            high += (uint64_t)((int64_t)(x >> 32) * weights[k * OUTPUTS + o]);
        }
        join_one(join, low, high, out + o * stride);
    }
}

#ifdef LANES
#if defined(__x86_64__)
#define WIDE 8 /* coefficients at once with AVX-512 */
#define WIDE_TARGET __attribute__((target("avx512f,avx2")))
#define SIGNED_TIMES(a, b) ((Vector)_mm256_mul_epi32((__m256i)(a), (__m256i)(b)))
#define ALL(w) ((Vector)_mm256_set1_epi32(w))

/* Put the sums of LANES coefficients together and add them to `out`. */
TARGET static inline void join_vectors(const Join *join, Vector low, Vector high, uint64_t *out) {
    const Vector p = join->p - (Vector){0};
    const Factors4 one = factors_of(join->one.w - (Vector){0}, join->one.quotient - (Vector){0});
    const Factors4 upper = factors_of(join->upper.w - (Vector){0}, join->upper.quotient - (Vector){0});
    const Vector a = less4(times4(&one, low, p, p >> 32), 2 * p), b = less4(times4(&upper, high, p, p >> 32), 2 * p);
    const Vector sum = a + b + (join->rest - (Vector){0}) + LOAD(out); /* below 6 p */
    STORE(out, less4(less4(less4(sum, 4 * p), 2 * p), p));
}
#else
#define SIGNED_TIMES(a, b) ((Vector)vmull_s32(vreinterpret_s32_u32(vmovn_u64((uint64x2_t)(a))), vmovn_s64((int64x2_t)(b))))
#define ALL(w) ((Vector)vdupq_n_s64(w))

static inline void join_vectors(const Join *join, Vector low, Vector high, uint64_t *out) {
    for (size_t lane = 0; lane < LANES; lane++) {
        join_one(join, low[lane], high[lane], out + lane);
    }
}
#endif

#define IN_REGISTERS 4 /* sums that are added up at once */

/* Add terms [first, last) to LANES coefficients of OUTPUTS sums. */
TARGET static void tap_vectors(const Taps *t, const Join *join, const uint64_t *inputs, const int32_t *weights, size_t first, size_t last,
                               uint64_t *out, size_t stride) {
    for (size_t some = 0; some < OUTPUTS; some += IN_REGISTERS) {
        Vector low[IN_REGISTERS], high[IN_REGISTERS];
        for (size_t o = 0; o < IN_REGISTERS; o++) {
            low[o] = high[o] = BIAS - (Vector){0};
        }
        for (size_t k = first; k < last; k++) {
            const Vector x = LOAD(inputs + t->offsets[k]), upper = x >> 32;
            __builtin_prefetch(inputs + t->offsets[k] + AHEAD);
            for (size_t o = 0; o < IN_REGISTERS; o++) {
                const Vector w = ALL(weights[k * OUTPUTS + some + o]);
                low[o] += SIGNED_TIMES(x, w);
                high[o] += SIGNED_TIMES(upper, w);
            }
        }
        for (size_t o = 0; o < IN_REGISTERS; o++) {
            join_vectors(join, low[o], high[o], out + (some + o) * stride);
        }
    }
}
#endif

#ifdef WIDE
/* The same of WIDE coefficients. */
WIDE_TARGET static void tap_wide(const Taps *t, const Join *join, const uint64_t *inputs, const int32_t *weights, size_t first, size_t last,
                                 uint64_t *out, size_t stride) {
    __m512i low[OUTPUTS], high[OUTPUTS];
    uint64_t sums[2][WIDE];
    for (size_t o = 0; o < OUTPUTS; o++) {
        low[o] = high[o] = _mm512_set1_epi64((int64_t)BIAS);
    }
    for (size_t k = first; k < last; k++) {
        const __m512i x = _mm512_loadu_si512(inputs + t->offsets[k]), upper = _mm512_srli_epi64(x, 32);
        __builtin_prefetch(inputs + t->offsets[k] + AHEAD);
        for (size_t o = 0; o < OUTPUTS; o++) {
            const __m512i w = _mm512_set1_epi32(weights[k * OUTPUTS + o]);
            low[o] = _mm512_add_epi64(low[o], _mm512_mul_epi32(x, w));
            high[o] = _mm512_add_epi64(high[o], _mm512_mul_epi32(upper, w));
        }
    }
    for (size_t o = 0; o < OUTPUTS; o++) {
        _mm512_storeu_si512(sums[0], low[o]);
        _mm512_storeu_si512(sums[1], high[o]);
        for (size_t half = 0; half < WIDE; half += LANES) {
            join_vectors(join, LOAD(sums[0] + half), LOAD(sums[1] + half), out + o * stride + half);
        }
    }
}

static int with_wide = 0;
#endif

/* Use vectors of up to so many words that the processor has, and return how many that are: when the module is loaded, and in tests. */
static size_t use_vectors(size_t most) {
    size_t width = 1;
#ifdef LANES
    with_vectors = most >= LANES && HAS_VECTORS();
    width = with_vectors ? LANES : width;
#endif
#ifdef WIDE
    with_wide = most >= WIDE && __builtin_cpu_supports("avx512f");
    width = with_wide ? WIDE : width;
#endif
    (void)most;
    return width;
}

/* Add terms [first, last) to coefficients [place, place + count) of one line of OUTPUTS sums. */
static void tap_tile(const Taps *t, const Join *join, const uint64_t *inputs, const int32_t *weights, size_t first, size_t last,
                     uint64_t *out, size_t stride, size_t count) {
    size_t i = 0;
#ifdef WIDE
    if (with_wide) {
        for (; i + WIDE <= count; i += WIDE) {
            tap_wide(t, join, inputs + i, weights, first, last, out + i, stride);
        }
    }
#endif
#ifdef LANES
    if (with_vectors) {
        for (; i + LANES <= count; i += LANES) {
            tap_vectors(t, join, inputs + i, weights, first, last, out + i, stride);
        }
    }
#endif
    for (; i < count; i++) {
        tap_singly(t, join, inputs + i, weights, first, last, out + i, stride);
    }
}

/* Add up all terms, in runs that leave the sums of halves below BIAS in size. `out` begins with zeros. */
static void taps(const Taps *t) {
    const size_t lines = 2 * t->primes, span = t->margin + t->degree, groups = t->count / OUTPUTS;
    uint64_t largest = 1;
    for (size_t k = 0; k < t->terms * t->count; k++) {
        const uint64_t size = (uint64_t)(t->weights[k] < 0 ? -(int64_t)t->weights[k] : t->weights[k]);
        largest = size > largest ? size : largest;
    }
    const size_t run = (size_t)(MOST_SUM / largest);
    for (size_t line = 0; line < lines; line++) {
        const Prime prime = prime_of(t->moduli[line % t->primes]);
        const Join join = join_of(&prime);
        for (size_t place = 0; place < t->degree; place += TILE) {
            const size_t count = t->degree - place < TILE ? t->degree - place : TILE;
            for (size_t group = 0; group < groups; group++) {
                uint64_t *out = t->out + (group * OUTPUTS * lines + line) * t->degree + place;
                for (size_t first = 0; first < t->terms; first += run) {
                    const size_t last = t->terms - first < run ? t->terms : first + run;
                    tap_tile(t, &join, t->inputs + line * span + place, t->weights + group * t->terms * OUTPUTS, first, last, out,
                             lines * t->degree, count);
                }
            }
        }
    }
}
