// Runs a network of csrc/cpu in every way there is, for sanitizers; see test_sanitizers.py. Or in few, for emulated
// processors, on which it takes longer; see test_emulated.py.
//
//   driver FILE [large | short | answers FOLDER]
//       FILE     what `write_operands` wrote
//       large    larger images, too
//       short    an answer's memory is too short by one number, which a sanitizer must see
//       answers  of one image, into files FOLDER/SET-FORM: logits, and the edge map where there is one, as raw floats
//
// Every buffer has the very size that it must have. Where sums do not depend on who computes them the answers are
// compared, too. Prints the instruction sets that ran.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <random>
#include <thread>

#include "instruction_sets.h"
#include "network.h"

using namespace dssnet::cpu;

namespace {

[[noreturn]] void fail(const std::string& what) {
    std::cerr << "driver: " << what << "\n";
    std::exit(1);
}

struct Given {
    Operands operands;
    std::vector<std::vector<float>> numbers;
};

// Words, and after each convolution's line its weights and biases as raw floats.
void read(const char* path, Given& given) {
    std::ifstream file(path, std::ios::binary);
    Sizes& sizes = given.operands.sizes;
    size_t blocks, slopes, convolutions;
    file >> sizes.in_channels >> sizes.classes >> sizes.width >> sizes.features >> sizes.fused >> sizes.y >> sizes.narrow >>
        sizes.learned_upsampling >> sizes.edges >> blocks >> slopes >> convolutions;
    for (size_t block = 0; block < blocks; ++block) {
        size_t layers;
        file >> layers;
        BlockNames names(layers);
        for (LayerNames& layer : names) {
            size_t parts;
            file >> parts >> layer.slope;
            layer.parts.resize(parts);
            for (std::string& part : layer.parts) file >> part;
        }
        given.operands.blocks.push_back(names);
    }
    for (size_t i = 0; i < slopes; ++i) {
        std::string name;
        float slope;
        file >> name >> slope;
        given.operands.slopes[name] = slope;
    }
    for (size_t i = 0; i < convolutions; ++i) {
        Operand one;
        std::string type;
        Format input;
        file >> one.name >> one.lines >> one.taps >> one.inputs >> one.outputs >> type >> input.step;
        input.type = type == "int8" ? Type::i8 : type == "bf16" ? Type::bf16 : Type::f32;
        file.get();  // the end of the line
        for (const size_t count : {size_t(one.lines) * one.taps * one.inputs * one.outputs, size_t(one.outputs)}) {
            given.numbers.emplace_back(count);
            file.read(reinterpret_cast<char*>(given.numbers.back().data()), count * sizeof(float));
        }
        one.weight = given.numbers[given.numbers.size() - 2].data();
        one.bias = given.numbers.back().data();
        given.operands.convolutions[one.name] = one;
        given.operands.inputs[one.name] = input;
    }
    if (!file) fail(std::string("cannot read ") + path);
}

using Floats = std::vector<float>;

int missing = 0;  // numbers of an answer

void check(const Floats& values, const char* what) {
    for (float value : values) {
        if (!std::isfinite(value)) fail(std::string(what) + " is not finite");
    }
}

// One shape of images, and all that a network makes of it.
class Images {
  public:
    Images(const Network& network, int batch, int height, int width) : network_(network), sizes_(network.sizes()) {
        std::mt19937 random(7);
        run_.batch = batch, run_.height = height, run_.width = width;
        bytes_.resize(size_t(batch) * height * width * sizes_.in_channels);
        for (uint8_t& byte : bytes_) byte = uint8_t(random());
        floats_.resize(bytes_.size());
        for (float& value : floats_) value = float(int(random() % 255) - 127) / 128;
    }

    Floats whole(int threads, bool as_bytes = true) const {
        Run run = of_image(as_bytes);
        Floats logits(pixels() * sizes_.classes);
        logits.resize(logits.size() - missing);
        logits.shrink_to_fit();
        run.kind = AnswerKind::logits, run.values = logits.data();
        network_.run(run, threads);
        check(logits, "the answer");
        return logits;
    }

    void other_kinds(int threads) const {
        Run run = of_image(true);
        std::vector<uint8_t> labels(pixels());
        run.labels = labels.data();
        network_.run(run, threads);
        for (uint8_t label : labels) {
            if (label >= sizes_.classes) fail("no such class");
        }
        Floats probabilities(pixels() * sizes_.classes);
        run.labels = nullptr, run.kind = AnswerKind::probabilities, run.values = probabilities.data();
        network_.run(run, threads);
        check(probabilities, "the probability");
    }

    // The edge map alone, or beside labels.
    Floats edges(int threads, bool alone) const {
        Run run = of_image(true);
        Floats edges(pixels() / 4);
        std::vector<uint8_t> labels(pixels());
        run.wants_edges = true, run.edges = edges.data();
        run.wants_answer = !alone, run.labels = labels.data();
        network_.run(run, threads);
        check(edges, "the edge map");
        return edges;
    }

    // Parts of the answer, their decisions and edges, from all corners of the image to its middle.
    void cores(const Floats& whole, const Floats& whole_edges, int threads) const {
        const int height = run_.height / PHASES, width = run_.width / PHASES;
        const Range rows[] = {{0, height}, {0, 1}, {height - 1, height}, {height / 2, height / 2 + 1}};
        const Range columns[] = {{0, width}, {0, 1}, {width - 1, width}, {width / 2, width / 2 + 1}};
        for (const Range& of_rows : rows) {
            for (const Range& of_columns : columns) {
                Run run = of_image(true);
                run.has_core = true, run.core_rows = of_rows, run.core_columns = of_columns;
                const size_t line = size_t(of_columns.count()) * PHASES;
                const size_t pixels = run_.batch * size_t(of_rows.count()) * PHASES * line;
                Floats logits(pixels * sizes_.classes), probabilities(pixels);
                run.kind = AnswerKind::logits, run.values = logits.data();
                network_.run(run, threads);
                const float* found = logits.data();
                for (int image = 0; image < run_.batch; ++image) {
                    for (int row = of_rows.first * PHASES; row < of_rows.last * PHASES; ++row) {
                        const size_t at = (size_t(image) * run_.height + row) * run_.width + of_columns.first * PHASES;
                        const size_t count = line * sizes_.classes;
                        if (!std::equal(found, found + count, whole.data() + at * sizes_.classes)) {
                            fail("a core differs from the whole");
                        }
                        found += count;
                    }
                }
                std::vector<uint8_t> labels(pixels);
                run.kind = AnswerKind::decision, run.labels = labels.data(), run.values = probabilities.data();
                network_.run(run, threads);
                check(probabilities, "the decision");
                if (!sizes_.edges) continue;
                const Floats without = probabilities;
                Floats edges(pixels / 4);
                run.wants_edges = true, run.edges = edges.data();
                network_.run(run, threads);
                if (probabilities != without) fail("edges change the decision");
                found = edges.data();
                for (int image = 0; image < run_.batch; ++image) {
                    for (int row = of_rows.first * PHASES / 2; row < of_rows.last * PHASES / 2; ++row) {
                        const size_t at = (size_t(image) * run_.height / 2 + row) * run_.width / 2;
                        const float* wanted = whole_edges.data() + at + of_columns.first * PHASES / 2;
                        if (!std::equal(found, found + line / 2, wanted)) fail("a core's edges differ from the whole's");
                        found += line / 2;
                    }
                }
            }
        }
    }

    Floats by_stages(int threads) const {
        const size_t cells = pixels() / 64;
        Floats x0(cells * sizes_.width), shallow(cells * sizes_.features), deep(shallow.size()), y(cells * 16 * sizes_.y);
        Floats logits(pixels() * sizes_.classes), edges(pixels() / 4);
        Run run = of_image(false);
        run.stage = Stage::downsample, run.x0 = x0.data();
        network_.run(run, threads);
        run = empty(Stage::extract);
        run.x0_in = x0.data(), run.shallow = shallow.data(), run.deep = deep.data();
        network_.run(run, threads);
        run = empty(Stage::fuse);
        run.shallow_in = shallow.data(), run.deep_in = deep.data(), run.y = y.data();
        network_.run(run, threads);
        if (sizes_.edges) {
            run = empty(Stage::edges);
            run.shallow_in = shallow.data(), run.deep_in = deep.data(), run.edges = edges.data();
            network_.run(run, threads);
            check(edges, "edges by stages");
        }
        run = empty(Stage::segment);
        run.y_in = y.data(), run.kind = AnswerKind::logits, run.values = logits.data();
        network_.run(run, threads);
        check(logits, "the answer by stages");
        return logits;
    }

  private:
    size_t pixels() const { return size_t(run_.batch) * run_.height * run_.width; }
    Run empty(Stage stage) const {
        Run run = run_;
        run.stage = stage;
        return run;
    }
    Run of_image(bool as_bytes) const {
        Run run = run_;
        if (as_bytes) run.bytes = bytes_.data();
        else run.floats = floats_.data();
        return run;
    }

    const Network& network_;
    const Sizes sizes_;
    Run run_;
    std::vector<uint8_t> bytes_;
    Floats floats_;
};

void expect_equal(const Floats& one, const Floats& other, const char* what) {
    if (one != other) fail(what);
}

// The operands for an instruction set: in a form, and bfloat16 as it has it.
Operands of_set(const Kernels& kernels, Operands operands, bool winograd) {
    operands.winograd = winograd;
    for (auto& [_, input] : operands.inputs) {
        if (input.type == Type::bf16 && !kernels.convolve[int(Type::bf16)]) input.type = Type::wide_bf16;
    }
    return operands;
}

void exercise(const Kernels& kernels, const Operands& given, bool winograd, bool large) {
    const Operands operands = of_set(kernels, given, winograd);
    const Network network(kernels, operands);
    std::vector<std::array<int, 3>> shapes = {{1, 8, 8}, {3, 16, 136}, {1, 72, 16}, {0, 8, 8}};
    if (large) shapes.insert(shapes.end(), {{1, 56, 264}, {2, 136, 8}});
    for (const auto& [batch, height, width] : shapes) {
        const Images images(network, batch, height, width);
        const Floats alone = images.whole(1);
        for (int threads : {2, 3}) {
            expect_equal(alone, images.whole(threads), "threads change the answer");
        }
        Floats edges;
        if (network.sizes().edges) {
            edges = images.edges(1, false);
            for (int threads : {1, 2, 3}) expect_equal(edges, images.edges(threads, threads != 3), "edges differ");
        }
        if (batch > 0) images.cores(alone, edges, 2);
        images.whole(2, false);
        images.other_kinds(2);
        const Floats stages = images.by_stages(2);
        if (!winograd) expect_equal(stages, images.whole(2, false), "stages change the answer");
        Run sizes;
        sizes.height = height, sizes.width = width;
        if (network.workspace_bytes(sizes, 2) == 0) fail("a run needs no memory");
    }
    // Both at once want the same threads; the second finds them busy.
    const Images first(network, 2, 24, 40), second(network, 1, 40, 136);
    const Floats expected[] = {first.whole(1), second.whole(1)};
    const auto work = [&](const Images& images, const Floats& wanted) {
        for (int i = 0; i < 4; ++i) {
            const Floats answer = images.whole(1 + i % 3);
            expect_equal(answer, wanted, "callers disturb each other");
        }
    };
    std::thread other([&] { work(first, expected[0]); });
    work(second, expected[1]);
    other.join();
}

void write(const Kernels& kernels, const Operands& given, bool winograd, const std::string& folder) {
    const Network network(kernels, of_set(kernels, given, winograd));
    const Images images(network, 1, 16, 72);
    std::ofstream file(folder + "/" + kernels.name + (winograd ? "-winograd" : "-direct"), std::ios::binary);
    const auto append = [&](const Floats& values) {
        file.write(reinterpret_cast<const char*>(values.data()), std::streamsize(values.size() * sizeof(float)));
    };
    append(images.whole(2));
    if (network.sizes().edges) append(images.edges(2, true));
    if (!file.flush()) fail("cannot write to " + folder);
}

}  // namespace

int main(int count, char** arguments) {
    const std::string option = count > 2 ? arguments[2] : "";
    missing = option == "short";
    const bool answers = option == "answers" && count > 3;
    Given given;
    read(arguments[1], given);
    for (const InstructionSet& set : instruction_sets()) {
        if (!set.runs_here) continue;
        for (bool winograd : {true, false}) {
            if (answers) write(*set.kernels, given.operands, winograd, arguments[3]);
            else exercise(*set.kernels, given.operands, winograd, option == "large");
        }
        std::cout << set.kernels->name << "\n";
    }
}
