// The ranks that are given to more than two responses, one after the other.

export class Ranking {
  constructor(count) {
    this.ranks = new Array(count).fill(null); // by place on the page: 0 is the best, null is not ranked
    this.tieNext = false; // whether the next response that is ranked ties with the last one
  }

  get isEmpty() {
    return this.ranks.every((rank) => rank === null);
  }

  get isTie() {
    return this.ranks.every((rank) => rank === 0);
  }

  // The worst rank given so far; -1 if there is none.
  get last() {
    return Math.max(-1, ...this.ranks.filter((rank) => rank !== null));
  }

  // Ranks a response behind those that have a rank, or takes its rank away.
  toggle(place) {
    if (this.ranks[place] !== null) this.ranks[place] = null;
    else this.ranks[place] = this.tieNext && !this.isEmpty ? this.last : this.last + 1;
    const levels = [...new Set(this.ranks.filter((rank) => rank !== null))].sort((a, b) => a - b);
    this.ranks = this.ranks.map((rank) => (rank === null ? null : levels.indexOf(rank)));
    this.tieNext = false;
  }

  takeBack() {
    if (!this.isEmpty) this.toggle(this.ranks.lastIndexOf(this.last));
  }

  toggleTie() {
    this.tieNext = !this.tieNext && !this.isEmpty;
  }
}
