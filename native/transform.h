/* The number-theoretic transform modulo X^n + 1 and a prime, and its inverse, with the butterflies of Harvey ("Faster arithmetic
 * for number-theoretic transforms", Journal of Symbolic Computation 60, 2014).
 *
 * Powers are those of a primitive 2n-th root: at i the one whose exponent is i with its bits reversed. Value i of a transform is
 * the polynomial at the root to the power of 2 (i reversed) + 1.
 */
#include "lanes.h"

/* The bits of a number below `degree`, a power of two, in the other order. */
static size_t reversed(size_t number, size_t degree) {
    size_t found = 0;
    for (size_t bit = 1, opposite = degree >> 1; bit < degree; bit <<= 1, opposite >>= 1) {
        found |= number & bit ? opposite : 0;
    }
    return found;
}

static void put(uint64_t *powers, size_t place, size_t degree, uint64_t w, uint64_t p) {
    const Factor factor = factor_of(w, p);
    powers[place] = factor.w;
    powers[degree + place] = factor.quotient;
}

/* Powers of a root, and of its inverse, each as factors and quotients: [2, 2, degree]. */
static void powers_of(uint64_t root, uint64_t p, size_t degree, uint64_t *out) {
    const Prime prime = prime_of(p);
    uint64_t power = 1, *inverse = out + 2 * degree;
    put(inverse, 0, degree, 1, p);
    for (size_t exponent = 0; exponent < degree; exponent++) {
        put(out, reversed(exponent, degree), degree, power, p);
        if (exponent) { /* root^-(n - e) = -root^e */
            put(inverse, reversed(degree - exponent, degree), degree, p - power, p);
        }
        power = multiply(&prime, power, root);
    }
}

/* One over the degree, a power of two. */
static uint64_t inverse_of_degree(size_t degree, uint64_t p) {
    uint64_t found = 1;
    for (; degree > 1; degree >>= 1) {
        found = found % 2 ? (found + p) / 2 : found / 2;
    }
    return found;
}

static inline Factor power_at(const uint64_t *powers, size_t place, size_t degree) {
    const Factor factor = {powers[place], powers[degree + place]};
    return factor;
}

/* Coefficients to values, in place. Numbers stay below 4 p on the way. */
static void transform_singly(uint64_t *x, size_t degree, uint64_t p, const uint64_t *powers) {
    for (size_t blocks = 1, half = degree >> 1; half; blocks <<= 1, half >>= 1) {
        for (size_t block = 0; block < blocks; block++) {
            const Factor root = power_at(powers, blocks + block, degree);
            uint64_t *a = x + 2 * half * block, *b = a + half;
            for (size_t i = 0; i < half; i++) {
                const uint64_t sum = less(a[i], 2 * p), product = times(root, b[i], p);
                a[i] = sum + product;
                b[i] = sum + 2 * p - product;
            }
        }
    }
    for (size_t i = 0; i < degree; i++) {
        x[i] = less(less(x[i], 2 * p), p);
    }
}

/* Values to coefficients, in place. Numbers stay below 2 p on the way. */
static void transform_back_singly(uint64_t *x, size_t degree, uint64_t p, const uint64_t *powers) {
    for (size_t blocks = degree >> 1, half = 1; blocks; blocks >>= 1, half <<= 1) {
        for (size_t block = 0; block < blocks; block++) {
            const Factor root = power_at(powers, blocks + block, degree);
            uint64_t *a = x + 2 * half * block, *b = a + half;
            for (size_t i = 0; i < half; i++) {
                const uint64_t one = a[i], other = b[i];
                a[i] = less(one + other, 2 * p);
                b[i] = times(root, one + 2 * p - other, p);
            }
        }
    }
    const Factor scale = factor_of(inverse_of_degree(degree, p), p);
    for (size_t i = 0; i < degree; i++) {
        x[i] = less(times(scale, x[i], p), p);
    }
}

#if defined(__x86_64__)
#define QUAD 4 /* values that the last two steps keep to themselves */

/* A butterfly of `transform`: numbers stay below 8 p. */
TARGET static inline void forth(Vector *a, Vector *b, const Factors4 *root, Vector p, Vector p_high) {
    const Vector sum = less4(*a, 4 * p), product = times4(root, *b, p, p_high);
    *a = sum + product;
    *b = sum + 4 * p - product;
}

/* A butterfly of `transform_back`: numbers stay below 4 p. */
TARGET static inline void back(Vector *a, Vector *b, const Factors4 *root, Vector p, Vector p_high) {
    const Vector sum = *a + *b, difference = *a + 4 * p - *b;
    *a = less4(sum, 4 * p);
    *b = times4(root, difference, p, p_high);
}

TARGET static inline void transpose(Vector v[QUAD]) {
    const __m256i a = _mm256_unpacklo_epi64((__m256i)v[0], (__m256i)v[1]), b = _mm256_unpackhi_epi64((__m256i)v[0], (__m256i)v[1]);
    const __m256i c = _mm256_unpacklo_epi64((__m256i)v[2], (__m256i)v[3]), d = _mm256_unpackhi_epi64((__m256i)v[2], (__m256i)v[3]);
    v[0] = (Vector)_mm256_permute2x128_si256(a, c, 0x20);
    v[1] = (Vector)_mm256_permute2x128_si256(b, d, 0x20);
    v[2] = (Vector)_mm256_permute2x128_si256(a, c, 0x31);
    v[3] = (Vector)_mm256_permute2x128_si256(b, d, 0x31);
}

/* Every second of eight words, from the first or from the second on. */
TARGET static inline Vector every_second(const uint64_t *from, int odd) {
    const __m256i a = (__m256i)LOAD(from), b = (__m256i)LOAD(from + 4);
    return (Vector)_mm256_permute4x64_epi64(odd ? _mm256_unpackhi_epi64(a, b) : _mm256_unpacklo_epi64(a, b), 0xd8);
}

/* Four quads, transposed, with the powers of the steps in which they are a block, and two. */
typedef struct {
    Vector v[QUAD];
    Factors4 whole, left, right;
} Quads;

TARGET static inline Quads quads_at(const uint64_t *x, size_t first, size_t degree, const uint64_t *powers) {
    const uint64_t *one = powers + degree / 4 + first / 4, *two = powers + degree / 2 + first / 2;
    Quads found = {{LOAD(x + first), LOAD(x + first + 4), LOAD(x + first + 8), LOAD(x + first + 12)},
                   factors_of(LOAD(one), LOAD(one + degree)),
                   factors_of(every_second(two, 0), every_second(two + degree, 0)),
                   factors_of(every_second(two, 1), every_second(two + degree, 1))};
    transpose(found.v);
    return found;
}

TARGET static void transform_lanes(uint64_t *x, size_t degree, uint64_t prime, const uint64_t *powers) {
    const Vector p = prime - (Vector){0}, p_high = p >> 32;
    for (size_t blocks = 1, half = degree >> 1; half >= QUAD; blocks <<= 1, half >>= 1) {
        for (size_t block = 0; block < blocks; block++) {
            const Factor root = power_at(powers, blocks + block, degree);
            const Factors4 roots = factors_of(root.w - (Vector){0}, root.quotient - (Vector){0});
            uint64_t *a = x + 2 * half * block, *b = a + half;
            for (size_t i = 0; i < half; i += LANES) {
                Vector one = LOAD(a + i), other = LOAD(b + i);
                forth(&one, &other, &roots, p, p_high);
                STORE(a + i, one);
                STORE(b + i, other);
            }
        }
    }
    for (size_t first = 0; first < degree; first += QUAD * QUAD) {
        Quads q = quads_at(x, first, degree, powers);
        forth(&q.v[0], &q.v[2], &q.whole, p, p_high);
        forth(&q.v[1], &q.v[3], &q.whole, p, p_high);
        forth(&q.v[0], &q.v[1], &q.left, p, p_high);
        forth(&q.v[2], &q.v[3], &q.right, p, p_high);
        transpose(q.v);
        for (size_t i = 0; i < QUAD; i++) {
            STORE(x + first + QUAD * i, less4(less4(less4(q.v[i], 4 * p), 2 * p), p));
        }
    }
}

TARGET static void transform_back_lanes(uint64_t *x, size_t degree, uint64_t prime, const uint64_t *powers) {
    const Vector p = prime - (Vector){0}, p_high = p >> 32;
    for (size_t first = 0; first < degree; first += QUAD * QUAD) {
        Quads q = quads_at(x, first, degree, powers);
        back(&q.v[0], &q.v[1], &q.left, p, p_high);
        back(&q.v[2], &q.v[3], &q.right, p, p_high);
        back(&q.v[0], &q.v[2], &q.whole, p, p_high);
        back(&q.v[1], &q.v[3], &q.whole, p, p_high);
        transpose(q.v);
        for (size_t i = 0; i < QUAD; i++) {
            STORE(x + first + QUAD * i, q.v[i]);
        }
    }
    for (size_t blocks = degree >> 3, half = QUAD; blocks; blocks >>= 1, half <<= 1) {
        for (size_t block = 0; block < blocks; block++) {
            const Factor root = power_at(powers, blocks + block, degree);
            const Factors4 roots = factors_of(root.w - (Vector){0}, root.quotient - (Vector){0});
            uint64_t *a = x + 2 * half * block, *b = a + half;
            for (size_t i = 0; i < half; i += LANES) {
                Vector one = LOAD(a + i), other = LOAD(b + i);
                back(&one, &other, &roots, p, p_high);
                STORE(a + i, one);
                STORE(b + i, other);
            }
        }
    }
    const Factor scale = factor_of(inverse_of_degree(degree, prime), prime);
    const Factors4 scales = factors_of(scale.w - (Vector){0}, scale.quotient - (Vector){0});
    for (size_t i = 0; i < degree; i += LANES) {
        STORE(x + i, less4(less4(times4(&scales, LOAD(x + i), p, p_high), 2 * p), p));
    }
}
#endif

static void transform(uint64_t *x, size_t degree, uint64_t p, const uint64_t *powers) {
#if defined(__x86_64__)
    if (degree >= QUAD * QUAD && with_vectors) {
        transform_lanes(x, degree, p, powers);
        return;
    }
#endif
    transform_singly(x, degree, p, powers);
}

static void transform_back(uint64_t *x, size_t degree, uint64_t p, const uint64_t *powers) {
#if defined(__x86_64__)
    if (degree >= QUAD * QUAD && with_vectors) {
        transform_back_lanes(x, degree, p, powers + 2 * degree);
        return;
    }
#endif
    transform_back_singly(x, degree, p, powers + 2 * degree);
}
